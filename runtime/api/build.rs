//! The wire types from `proto/`, without a protoc of the system.

/// What a client sends: a field that nobody knows is refused, as it would be ignored otherwise. An answer may grow, and old clients go on.
const REQUESTS: [&str; 19] = [
    "CreateRequest",
    "Limits",
    "SandboxRef",
    "ListRequest",
    "LogsRequest",
    "StreamRequest",
    "SetModeRequest",
    "SetLimitsRequest",
    "SetSwitchesRequest",
    "SignalRequest",
    "RemoveRequest",
    "AuditRequest",
    "UpRequest",
    "GroupMember",
    "GroupRef",
    "MailSendRequest",
    "MailReceiveRequest",
    "MailAcknowledgeRequest",
    "MailboxRef",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["apex/v1/apex.proto"], ["proto"])?;
    // The same messages as JSON. What a field is called there is what it is called here.
    let json = "#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]";
    let mut builder = tonic_prost_build::configure()
        .codec_path("crate::codec::Checked")
        .message_attribute(".", format!("{json}\n#[serde(default)]"))
        .enum_attribute(".", format!("{json}\n#[serde(rename_all = \"snake_case\")]"));
    for request in REQUESTS {
        builder = builder.message_attribute(format!("apex.v1.{request}"), "#[serde(deny_unknown_fields)]");
    }
    builder.compile_fds(files)?;
    Ok(())
}
