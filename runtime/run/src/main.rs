//! `apex-run`: wires the command line to the planner and the jail. See the library for its words.
#![no_main]

mod fresh;
mod keeper;
mod session;
mod verbs;
mod warm;
mod watch;

apex_sys::entry!(entry);

fn entry() -> i32 {
    let code = session::run(std::env::args_os().skip(1)).unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("apex-run: {error:#}\n"));
        session::exit_code(&error)
    });
    i32::from(code)
}
