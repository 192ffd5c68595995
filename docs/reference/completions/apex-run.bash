# bash completion for apex-run; made by `apex-run --completions bash`

_apex_run() {
    local cur prev word takes i
    COMPREPLY=()
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD-1]}
    takes=' --mode --level --profile --policy --optional --ro --rw --tmpfs --deny --overlay --net --env --pass-env --workdir --uid --gid --hostname --fd --tty --memory --cpu --tasks --nofile --tmp-size --time --receipt --events --findings --on-finding --baseline --learn --keep --mail --tty-size --completions '
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --) ((i++)) ;;
            -*) [[ $takes == *" $word "* ]] && ((i++)); continue ;;
        esac
        if ((i <= COMP_CWORD)) && declare -F _command_offset >/dev/null; then
            _command_offset "$i"
        else
            COMPREPLY=($(compgen -f -- "$cur"))
        fi
        return
    done
    case $prev in
        --mode) COMPREPLY=($(compgen -W 'isolation development hybrid' -- "$cur")); return ;;
        --level) COMPREPLY=($(compgen -W 'full partial none' -- "$cur")); return ;;
        --profile) COMPREPLY=($(compgen -W 'python node build shell static' -- "$cur")); return ;;
        --policy) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --optional) COMPREPLY=($(compgen -W 'netns ipcns utsns cgroupns timens seccomp landlock cgroup rlimits' -- "$cur")); return ;;
        --ro) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --rw) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --tmpfs) :; return ;;
        --deny) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --overlay) COMPREPLY=($(compgen -d -- "$cur")); return ;;
        --net) COMPREPLY=($(compgen -W 'none host' -- "$cur")); return ;;
        --env) :; return ;;
        --pass-env) COMPREPLY=($(compgen -e -- "$cur")); return ;;
        --workdir) COMPREPLY=($(compgen -d -- "$cur")); return ;;
        --uid) :; return ;;
        --gid) :; return ;;
        --hostname) :; return ;;
        --fd) :; return ;;
        --tty) COMPREPLY=($(compgen -W 'auto yes no' -- "$cur")); return ;;
        --memory) :; return ;;
        --cpu) :; return ;;
        --tasks) :; return ;;
        --nofile) :; return ;;
        --tmp-size) :; return ;;
        --time) :; return ;;
        --receipt) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --events) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --findings) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --on-finding) COMPREPLY=($(compgen -W 'warn freeze kill tighten' -- "$cur")); return ;;
        --baseline) COMPREPLY=($(compgen -W 'alert learn off' -- "$cur")); return ;;
        --learn) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --keep) :; return ;;
        --mail) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --tty-size) :; return ;;
        --completions) COMPREPLY=($(compgen -W 'bash zsh fish' -- "$cur")); return ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W '--mode --level --profile --policy --optional --ro --rw --tmpfs --deny --overlay --net --env --pass-env --workdir --uid --gid --hostname --fd --tty --memory --cpu --tasks --nofile --tmp-size --time --plan --receipt --why --prove --doctor --json --watch --events --findings --on-finding --baseline --summary --learn --keep --defer --warm --mail --tty-size --completions -h --help -V --version' -- "$cur"))
    else
        COMPREPLY=($(compgen -c -- "$cur"))
    fi
}

complete -o filenames -F _apex_run apex-run
