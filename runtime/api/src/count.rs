//! Which request was answered how, in words of a fixed set, so that the daemon can count. Of a stream only its beginning is judged.

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tonic::{Code, Status};

use crate::{Error, Kind, Service};

/// Where gRPC lies.
pub(crate) const GRPC: &str = "/apex.v1.Apex/";
/// What is no call or route of ours: a stranger chose its words.
pub(crate) const OTHER: &str = "other";

/// The route of a response, by its name in the document.
#[derive(Clone, Copy)]
pub(crate) struct Served(pub &'static str);

/// Tells the service.
pub(crate) fn tell(service: &dyn Service, path: &str, response: &Response) {
    let served = response.extensions().get::<Served>().map(|served| served.0);
    match path.strip_prefix(GRPC) {
        Some(method) => {
            let code = grpc_code(response.headers());
            let method = if code == Code::Unimplemented { OTHER } else { served.unwrap_or(method) };
            service.answered("grpc", method, grpc_word(code));
        }
        None => {
            let method = served.unwrap_or(OTHER);
            service.answered("rest", method, rest_word(response.status()));
        }
    }
}

/// An error stands in the head; what has no such header began well.
fn grpc_code(headers: &HeaderMap) -> Code {
    Status::from_header_map(headers).map_or(Code::Ok, |status| status.code())
}

fn grpc_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Unimplemented => "unknown",
        code => Error::from(Status::new(code, "")).kind.word(),
    }
}

fn rest_word(status: StatusCode) -> &'static str {
    if status.is_success() {
        return "ok";
    }
    Kind::of_status(status.as_u16()).map_or("unknown", Kind::word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_use_the_same_words() {
        assert_eq!((grpc_word(Code::NotFound), rest_word(StatusCode::NOT_FOUND)), ("not-found", "not-found"));
        assert_eq!((grpc_word(Code::Ok), rest_word(StatusCode::NO_CONTENT)), ("ok", "ok"));
        assert_eq!((grpc_word(Code::Unimplemented), rest_word(StatusCode::METHOD_NOT_ALLOWED)), ("unknown", "unknown"));
        let mut headers = HeaderMap::new();
        assert_eq!(grpc_code(&headers), Code::Ok);
        headers.insert("grpc-status", "7".parse().expect("a value"));
        assert_eq!(grpc_code(&headers), Code::PermissionDenied);
    }
}
