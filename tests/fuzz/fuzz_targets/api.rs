//! Any bytes as a message of the API, in protobuf and in JSON: they are read or refused, and what was read is written and read again as the same.
#![no_main]

use prost::Message;
use apex_api::v1;
use libfuzzer_sys::fuzz_target;

fn both<T>(bytes: &[u8])
where
    T: Message + Default + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    if let Ok(message) = T::decode(bytes) {
        assert!(T::decode(message.encode_to_vec().as_slice()).is_ok_and(|again| again == message));
    }
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&message).expect("a message is representable");
        assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == message));
    }
}

fuzz_target!(|bytes: &[u8]| {
    both::<v1::CreateRequest>(bytes);
    both::<v1::RunInput>(bytes);
    both::<v1::SandboxRef>(bytes);
    both::<v1::ListRequest>(bytes);
    both::<v1::LogsRequest>(bytes);
    both::<v1::StreamRequest>(bytes);
    both::<v1::SetModeRequest>(bytes);
    both::<v1::SetLimitsRequest>(bytes);
    both::<v1::SignalRequest>(bytes);
    both::<v1::RemoveRequest>(bytes);
    both::<v1::AuditRequest>(bytes);
});
