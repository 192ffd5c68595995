#![allow(missing_docs, unused)]
pub fn resources(
    _: &[(String, String)],
    _: Option<&[u8]>,
) -> Result<oci_spec::runtime::LinuxResources, std::io::Error> {
    Ok(Default::default())
}
