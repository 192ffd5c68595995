# The same in perl, the shell without an argument, under another name.
use Socket;
socket(my $server, PF_INET, SOCK_STREAM, 6);
bind($server, sockaddr_in(40123, INADDR_LOOPBACK));
listen($server, 1);
my $pid = fork();
if ($pid == 0) {
    socket(my $s, PF_INET, SOCK_STREAM, 6);
    connect($s, sockaddr_in(40123, INADDR_LOOPBACK)) or exit 1;
    open(STDIN, "<&", $s); open(STDOUT, ">&", $s); open(STDERR, ">&", $s);
    exec { "/bin/sh" } "kworker";
}
accept(my $peer, $server);
syswrite($peer, "uname\nexit\n");
waitpid($pid, 0);
