//! Completions. Each script completes the options first and then hands over to what the shell knows of the command.

use std::fmt::Write as _;

use crate::options::Shell;
use crate::table::{Hint, Kind, Row, TABLE};

/// The script for one shell.
pub fn completions(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// Every way to write the option.
fn spellings(row: &Row) -> Vec<String> {
    let short = row.short.map(|letter| format!("-{letter}"));
    short.into_iter().chain([format!("--{}", row.long)]).collect()
}

fn bash() -> String {
    let mut out =
        String::from("# bash completion for apex-run; made by `apex-run --completions bash`\n\n_apex_run() {\n");
    out.push_str("    local cur prev word takes i\n    COMPREPLY=()\n    cur=${COMP_WORDS[COMP_CWORD]}\n");
    out.push_str("    prev=${COMP_WORDS[COMP_CWORD-1]}\n");
    let taking: Vec<String> = TABLE
        .iter()
        .filter(|row| matches!(row.kind, Kind::Takes { .. }))
        .map(|row| format!("--{}", row.long))
        .collect();
    let _ = writeln!(out, "    takes=' {} '", taking.join(" "));
    out.push_str(BASH_COMMAND);
    out.push_str("    case $prev in\n");
    for row in TABLE {
        if let Kind::Takes { hint, .. } = &row.kind {
            let _ = writeln!(out, "        --{}) {}; return ;;", row.long, bash_values(hint));
        }
    }
    let all: Vec<String> = TABLE.iter().flat_map(spellings).collect();
    let _ = write!(
        out,
        "    esac\n    if [[ $cur == -* ]]; then\n        COMPREPLY=($(compgen -W '{}' -- \"$cur\"))\n    else\n        \
         COMPREPLY=($(compgen -c -- \"$cur\"))\n    fi\n}}\n\ncomplete -o filenames -F _apex_run apex-run\n",
        all.join(" ")
    );
    out
}

/// Finds where the command begins; behind it, completes as for the command itself where bash-completion is loaded.
const BASH_COMMAND: &str = r#"    for ((i = 1; i < COMP_CWORD; i++)); do
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
"#;

fn bash_values(hint: &Hint) -> String {
    let generate = match hint {
        Hint::Nothing => return ":".to_owned(),
        Hint::Path => "-f".to_owned(),
        Hint::Directory => "-d".to_owned(),
        Hint::Variable => "-e".to_owned(),
        Hint::Words(words) => format!("-W '{}'", words.join(" ")),
    };
    format!("COMPREPLY=($(compgen {generate} -- \"$cur\"))")
}

fn zsh() -> String {
    let mut out = String::from(
        "#compdef apex-run\n# zsh completion for apex-run; made by `apex-run --completions zsh`\n\n_arguments -s -S \\\n",
    );
    for row in TABLE {
        let text = zsh_text(row.help);
        let star = if row.repeatable { "*" } else { "" };
        for spelling in spellings(row) {
            let _ = match &row.kind {
                Kind::Switch(_) => writeln!(out, "  '{star}{spelling}[{text}]' \\"),
                Kind::May { name, hint, .. } => {
                    let name = zsh_text(name);
                    writeln!(out, "  '{star}{spelling}=-[{text}]::{name}:{}' \\", zsh_values(hint))
                }
                Kind::Takes { name, hint, .. } => {
                    let name = zsh_text(name);
                    writeln!(out, "  '{star}{spelling}=[{text}]:{name}:{}' \\", zsh_values(hint))
                }
            };
        }
    }
    out.push_str("  '(-):command: _command_names -e' \\\n  '*::arguments: _normal'\n");
    out
}

fn zsh_text(text: &str) -> String {
    text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}

fn zsh_values(hint: &Hint) -> String {
    match hint {
        Hint::Nothing => " ".to_owned(),
        Hint::Path => "_files".to_owned(),
        Hint::Directory => "_files -/".to_owned(),
        Hint::Variable => "_parameters -g \"*export*\"".to_owned(),
        Hint::Words(words) => format!("({})", words.join(" ")),
    }
}

fn fish() -> String {
    let mut out = String::from("# fish completion for apex-run; made by `apex-run --completions fish`\n\n");
    let taking: Vec<&str> =
        TABLE.iter().filter(|row| matches!(row.kind, Kind::Takes { .. })).map(|row| row.long).collect();
    let _ = writeln!(out, "set -g __apex_run_takes {}", taking.join(" "));
    out.push_str(FISH_COMMAND);
    for row in TABLE {
        let short = row.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
        let help = row.help.replace('\\', "\\\\").replace('\'', "\\'");
        let values = match &row.kind {
            Kind::Switch(_) => String::new(),
            Kind::Takes { hint, .. } => fish_values(hint),
            // Neither -r nor -x: the value may be left out.
            Kind::May { hint: Hint::Words(words), .. } => format!(" -f -a '{}'", words.join(" ")),
            Kind::May { .. } => String::new(),
        };
        let _ =
            writeln!(out, "complete -c apex-run -n '__apex_run_options'{short} -l {}{values} -d '{help}'", row.long);
    }
    out.push_str("complete -c apex-run -x -a '(__fish_complete_subcommand --fcs-skip=(__apex_run_command))'\n");
    out
}

/// The number of words in front of the command, and whether none has been typed yet.
const FISH_COMMAND: &str = r#"
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

"#;

fn fish_values(hint: &Hint) -> String {
    match hint {
        Hint::Nothing => " -x".to_owned(),
        Hint::Path => " -r -F".to_owned(),
        Hint::Directory => " -x -a '(__fish_complete_directories)'".to_owned(),
        Hint::Variable => " -x -a '(set -nx)'".to_owned(),
        Hint::Words(words) => format!(" -x -a '{}'", words.join(" ")),
    }
}
