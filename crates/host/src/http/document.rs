//! Completes the OpenAPI document generated from the handlers: describes each response and the
//! shape of each operation's errors.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi, PathItem, Ref, RefOr, Response, ResponseBuilder};

/// Fills in what the handlers' annotations leave out.
pub fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = describe(status).to_owned();
                }
            }
            operation.responses.responses.entry("default".to_owned()).or_insert(refusal().into());
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.head,
        &mut item.patch,
    ]
    .into_iter()
    .flatten()
}

/// Describes any status that the handler does not list: the guard, the body's limit and the
/// database refuse every path alike.
fn refusal() -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    ResponseBuilder::new()
        .description("Refused or failed; `code` says why, `hint` what to do next.")
        .content("application/json", body)
        .build()
}

fn describe(status: &str) -> &'static str {
    match status {
        "101" => "The connection becomes the stream.",
        "200" => "Done.",
        "201" => "Created.",
        "202" => "Accepted; it is under way.",
        "204" => "Done; the response is empty.",
        "302" | "303" | "307" => "Redirects.",
        "400" => "The request is invalid.",
        "401" => "Not logged in, or wrong credentials.",
        "403" => "Not allowed.",
        "404" => "Not found, or not visible to this account.",
        "408" => "The wait is over; nothing has changed.",
        "409" => "Not possible in the current state.",
        "413" => "Too large.",
        "422" => "A value is missing or invalid.",
        "429" => "Too many attempts or requests.",
        "502" => "The node or the provider failed.",
        "503" => "Not available now.",
        "507" => "A disk is full.",
        _ => "The response.",
    }
}
