//! `apex-oci`: the command line of an OCI runtime. See the library.
#![no_main]

apex_sys::entry!(entry);

fn entry() -> i32 {
    apex_oci::command::run(std::env::args_os().skip(1))
}
