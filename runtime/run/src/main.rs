//! `apex-run`: wires the command line to the planner and the jail. See the library for its words.

mod session;

use std::process::ExitCode;

fn main() -> ExitCode {
    match session::run(std::env::args_os().skip(1)) {
        Ok(code) => code,
        Err(error) => {
            // A closed standard error leaves nobody to tell.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("apex-run: {error:#}\n"));
            ExitCode::from(session::exit_code(&error))
        }
    }
}
