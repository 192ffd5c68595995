# A unit of the user's own systemd, moved into its place.
my $home = $ENV{HOME} // "/tmp";
mkdir "$home/.config"; mkdir "$home/.config/systemd"; mkdir "$home/.config/systemd/user";
open(my $f, ">", "/tmp/unit"); print $f "[Service]\nExecStart=/tmp/x\n"; close $f;
rename("/tmp/unit", "$home/.config/systemd/user/update.service");
