# The same with one connected socket for each question.
use IO::Socket::INET;
for my $n (1 .. 100) {
    my $s = IO::Socket::INET->new(Proto => "udp", PeerAddr => "127.0.0.1", PeerPort => 53) or next;
    $s->send("x" x 180);
}
