# One parent bears children that stay, one after the other.
my @children;
for (1 .. 50) {
    my $pid = fork();
    last unless defined $pid;
    if ($pid == 0) { sleep 2; exit 0 }
    push @children, $pid;
    select(undef, undef, undef, 0.01);
}
waitpid($_, 0) for @children;
