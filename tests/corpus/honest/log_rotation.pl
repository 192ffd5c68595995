# Rotates logs of its own.
mkdir "/tmp/log";
for my $n (1 .. 12) { open(my $f, ">", "/tmp/log/app$n.log"); print $f "line\n" x 100; }
for my $turn (1 .. 3) {
    for my $n (1 .. 12) {
        rename("/tmp/log/app$n.log.$_", "/tmp/log/app$n.log." . ($_ + 1)) for reverse 1 .. 3;
        rename("/tmp/log/app$n.log", "/tmp/log/app$n.log.1");
        open(my $f, ">", "/tmp/log/app$n.log"); close $f;
    }
}
unlink glob "/tmp/log/*.log.4";
