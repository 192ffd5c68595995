//! The OpenAPI 3.1 document, from the table of the routes and the messages themselves. Input: nothing. Output: JSON that is the same each time.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::rest::{EVENT_STREAM, JSON, Refusal};
use crate::routes::{Answer, ROUTES, Route};

/// The document.
pub fn document() -> String {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let refusal = generator.subschema_for::<Refusal>();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.verb.word()] = operation(route, &mut generator);
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "apexd",
            "description": "Sandboxes of Apex, over the unix socket of apexd. The same messages as gRPC's, as JSON.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://apexd", "description": "the unix socket of apexd; the name does not matter" }],
        "paths": paths,
        "components": {
            "responses": {
                "Refused": {
                    "description": "why the request was not answered as hoped",
                    "content": { JSON: { "schema": refusal } },
                },
            },
            "schemas": generator.take_definitions(true),
        },
    });
    // A JSON value keeps its keys sorted: the text is the same each time.
    format!("{document:#}\n")
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    let in_path =
        [("id", "id of a sandbox, an unambiguous beginning of it, or its name"), ("group", "name of a group")];
    for (name, what) in in_path.iter().filter(|(name, _)| route.path.contains(&format!("{{{name}}}"))) {
        parameters.push(json!({
            "name": name, "in": "path", "required": true, "description": what, "schema": { "type": "string" },
        }));
    }
    for param in route.query {
        parameters.push(json!({
            "name": param.name, "in": "query", "required": false, "description": param.what,
            "schema": { "type": param.kind },
        }));
    }
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.what,
        "parameters": parameters,
        "responses": {
            route.status.to_string(): answer(&route.answer, generator),
            "default": { "$ref": "#/components/responses/Refused" },
        },
    });
    if let Some(schema) = route.body {
        operation["requestBody"] = json!({ "required": true, "content": { JSON: { "schema": schema(generator) } } });
    }
    operation
}

fn answer(answer: &Answer, generator: &mut SchemaGenerator) -> Value {
    let any_array = json!({ "schema": { "type": "array", "items": { "type": "object" } } });
    let content = match answer {
        Answer::Message(schema) => json!({ JSON: { "schema": schema(generator) } }),
        Answer::Values => json!({ JSON: any_array }),
        Answer::Followed => json!({ JSON: any_array, EVENT_STREAM: { "schema": String::json_schema(generator) } }),
        Answer::Other(media) => json!({ *media: {} }),
        Answer::Empty => return json!({ "description": "done" }),
    };
    json!({ "description": "the answer", "content": content })
}
