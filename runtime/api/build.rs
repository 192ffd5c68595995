//! The wire types from `proto/`, without a protoc of the system.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["apex/v1/apex.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // The same messages as JSON. What a field is called there is what it is called here, and one that nobody knows is refused.
        .message_attribute(
            ".",
            "#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]\n#[serde(default, deny_unknown_fields)]",
        )
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]\n#[serde(rename_all = \"snake_case\")]")
        .compile_fds(files)?;
    Ok(())
}
