# The same with one connected socket for each question.
use IO::Socket::INET;
for my $n (1 .. 100) {
    my $s = IO::Socket::INET->new(Proto => "udp", PeerAddr => "127.0.0.1", PeerPort => 53) or next;
    my $data = join "", map { sprintf "%02x", int rand 256 } 1 .. 20;
    $s->send(pack("n6", $n, 256, 1, 0, 0, 0) . join("", map { pack "C/a*", $_ } $data, "t", "example", "org") . "\0" . pack("n2", 1, 1));
}
