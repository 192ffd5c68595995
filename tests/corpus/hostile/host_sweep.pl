# Looks for ssh on one host after the other.
use Socket;
for my $n (1 .. 40) {
    socket(my $s, PF_INET, SOCK_STREAM, 6);
    connect($s, sockaddr_in(22, inet_aton("127.0.1.$n")));
    close $s;
}
