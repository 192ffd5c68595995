# fish completion for apex-run; made by `apex-run --completions fish`

set -g __apex_run_takes mode level profile policy optional ro rw tmpfs deny overlay net env pass-env workdir uid gid hostname fd tty memory cpu tasks nofile tmp-size time receipt events findings on-finding baseline learn keep mail tty-size completions

function __apex_run_command
    set -l words (commandline -opc)
    set -l at 2
    while test $at -le (count $words)
        switch $words[$at]
            case --
                set at (math $at + 1)
                break
            case '--*=*'
                set at (math $at + 1)
            case '-*'
                if contains -- (string replace -r '^--' '' -- $words[$at]) $__apex_run_takes
                    set at (math $at + 1)
                end
                set at (math $at + 1)
            case '*'
                break
        end
    end
    math $at - 1
end

function __apex_run_options
    set -l words (commandline -opc)
    test (__apex_run_command) -ge (count $words); and not contains -- -- $words
end

complete -c apex-run -n '__apex_run_options' -l mode -x -a 'isolation development hybrid' -d 'isolation (default: everything on), development (readable host, writable working directory, reports) or hybrid'
complete -c apex-run -n '__apex_run_options' -l level -x -a 'full partial none' -d 'full (default), partial (the host\'s own files under Landlock and the filter; not in isolation) or none (a managed process that nothing confines; development only)'
complete -c apex-run -n '__apex_run_options' -l profile -x -a 'python node build shell static' -d 'what a kind of program needs: python, node, build, shell, static, or one of your own'
complete -c apex-run -n '__apex_run_options' -l policy -r -F -d 'a policy file (TOML) on top of mode and profile'
complete -c apex-run -n '__apex_run_options' -l optional -x -a 'netns ipcns utsns cgroupns timens seccomp landlock cgroup rlimits' -d 'go on without this layer when the host cannot give it; the receipt shows the skip'
complete -c apex-run -n '__apex_run_options' -l ro -r -F -d 'show PATH of the host, read and execute, at the same place or at DEST (absolute)'
complete -c apex-run -n '__apex_run_options' -l rw -r -F -d 'the same, writable: changes reach the host'
complete -c apex-run -n '__apex_run_options' -l tmpfs -x -d 'an empty private directory in memory at DEST, such as /var/cache:64M'
complete -c apex-run -n '__apex_run_options' -l deny -r -F -d 'refuse PATH under every name, also before it exists; wins over every grant'
complete -c apex-run -n '__apex_run_options' -l overlay -x -a '(__fish_complete_directories)' -d 'writes go to DIR, not to the host: see them with `apex-run diff DIR`, apply them with `apex-run commit DIR`'
complete -c apex-run -n '__apex_run_options' -l net -x -a 'none host' -d 'an empty network with its own loopback, or the network of the host'
complete -c apex-run -n '__apex_run_options' -l env -x -d 'set a variable inside'
complete -c apex-run -n '__apex_run_options' -l pass-env -x -a '(set -nx)' -d 'pass a variable of the caller; nothing else of the caller\'s environment goes in'
complete -c apex-run -n '__apex_run_options' -l workdir -x -a '(__fish_complete_directories)' -d 'working directory inside (default: the caller\'s where it is visible)'
complete -c apex-run -n '__apex_run_options' -l uid -x -d 'user id inside'
complete -c apex-run -n '__apex_run_options' -l gid -x -d 'group id inside'
complete -c apex-run -n '__apex_run_options' -l hostname -x -d 'host name inside'
complete -c apex-run -n '__apex_run_options' -l fd -x -d 'pass descriptor N (3 or more); every other one above 2 is closed'
complete -c apex-run -n '__apex_run_options' -l tty -x -a 'auto yes no' -d 'a terminal of its own for the command; auto gives one when input and output are a terminal'
complete -c apex-run -n '__apex_run_options' -l memory -x -d 'memory of the whole sandbox, such as 512M; private directories in memory count'
complete -c apex-run -n '__apex_run_options' -l cpu -x -d 'CPU time, in percent of one core (200 is two cores)'
complete -c apex-run -n '__apex_run_options' -l tasks -x -d 'processes and threads at once'
complete -c apex-run -n '__apex_run_options' -l nofile -x -d 'open descriptors of one process'
complete -c apex-run -n '__apex_run_options' -l tmp-size -x -d 'size of /tmp and of each --tmpfs without one'
complete -c apex-run -n '__apex_run_options' -l time -x -d 'life of the sandbox, such as 90s or 10m; then exit code 124'
complete -c apex-run -n '__apex_run_options' -l plan -d 'print what would be done, and from which rule each step comes; do nothing'
complete -c apex-run -n '__apex_run_options' -l receipt -r -F -d 'write what is really in force, read back from the kernel (- is standard output)'
complete -c apex-run -n '__apex_run_options' -l why -d 'afterwards explain each refusal: layer, rule, and the smallest safe change that allows it'
complete -c apex-run -n '__apex_run_options' -l prove -d 'attempt the forbidden things in a sandbox made from this very policy; needs no command'
complete -c apex-run -n '__apex_run_options' -l doctor -d 'tell which layers this host and user can have; needs no command'
complete -c apex-run -n '__apex_run_options' -l json -d 'JSON instead of text for each of these'
complete -c apex-run -n '__apex_run_options' -l watch -f -a 'off default full' -d 'watch what the command does: default has no hook on every system call, full has all; the next five imply default'
complete -c apex-run -n '__apex_run_options' -l events -r -F -d 'write each event as a line of JSON to a file, - (standard output), stderr, journald, syslog or an https:// address'
complete -c apex-run -n '__apex_run_options' -l findings -r -F -d 'write each finding there too, beside its line on standard error'
complete -c apex-run -n '__apex_run_options' -l on-finding -x -a 'warn freeze kill tighten' -d 'on a finding of severity high or above: warn (default), freeze, kill, or tighten network and resources'
complete -c apex-run -n '__apex_run_options' -l baseline -x -a 'alert learn off' -d 'alert of a run that does what no earlier one of its policy did (default where that was learned), learn from it, or off'
complete -c apex-run -n '__apex_run_options' -l summary -d 'afterwards tell on standard error what the command did: programs, files, hosts, refusals, odd things'
complete -c apex-run -n '__apex_run_options' -l learn -r -F -d 'watch at full and write the narrowest policy to FILE, or merge into it; writes go to an overlay, secrets stay denied'
complete -c apex-run -n '__apex_run_options' -l keep -x -d 'hold the sandbox for apexd: a listening socket, a file for how it ended, and descriptors to be handed out'
complete -c apex-run -n '__apex_run_options' -l defer -d 'with --keep: build the sandbox and start the command when its arguments come'
complete -c apex-run -n '__apex_run_options' -l warm -d 'with --keep: start the interpreter (python3, node), which waits for the command line that it is to run'
complete -c apex-run -n '__apex_run_options' -l mail -r -F -d 'with --keep: where apexd listens for the messages of a policy with mailboxes'
complete -c apex-run -n '__apex_run_options' -l tty-size -x -d 'with --keep: size of the command\'s terminal, which otherwise is that of the caller'
complete -c apex-run -n '__apex_run_options' -l completions -x -a 'bash zsh fish' -d 'print completions for bash, zsh or fish'
complete -c apex-run -n '__apex_run_options' -s h -l help -d 'print this text'
complete -c apex-run -n '__apex_run_options' -s V -l version -d 'print the version'
complete -c apex-run -x -a '(__fish_complete_subcommand --fcs-skip=(__apex_run_command))'
