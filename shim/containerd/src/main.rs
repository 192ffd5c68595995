//! `containerd-shim-apex-v2`: the Task API of containerd over `apex-oci`.

fn main() {}
