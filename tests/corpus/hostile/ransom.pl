# Encrypts through a temporary file and renames each to a new ending.
mkdir "/tmp/p";
for my $n (1 .. 20) { open(my $f, ">", "/tmp/p/photo$n.jpg"); print $f "x" x 100; }
for my $n (1 .. 20) {
    open(my $in, "<", "/tmp/p/photo$n.jpg"); my $data = join "", <$in>;
    open(my $out, ">", "/tmp/p/photo$n.jpg"); print $out $data ^ ("z" x length $data); close $out;
    rename("/tmp/p/photo$n.jpg", "/tmp/p/photo$n.jpg.k9w");
}
