//! The table of the API: each route with what it takes and answers. The routes that are served and the OpenAPI document that describes them
//! are made from the same entries.

use super::Shared;
use super::access;
use super::api::BODY_BYTES_MAX;
use super::tokens::Role;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, get, on};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Where the API is.
pub(super) const BASE: &str = "/api/v1";

/// Where, below [`BASE`], its description is.
const DOCUMENT: &str = "/openapi.json";

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One route of the API.
pub(super) struct Route {
    method: Method,
    /// Below [`BASE`].
    path: &'static str,
    /// Its name in the document, noun and verb.
    id: &'static str,
    /// What it does, one sentence.
    says: &'static str,
    /// What its caller must be allowed.
    role: Role,
    query: Option<SchemaOf>,
    body: Option<SchemaOf>,
    /// Status code of its answer if all goes well.
    done: StatusCode,
    answer: SchemaOf,
    /// Status codes of other answers, besides those that every route has.
    refusals: &'static [u16],
    serve: MethodRouter<Arc<Shared>>,
}

impl Route {
    fn new<A: JsonSchema, H: Handler<T, Arc<Shared>>, T: 'static>(
        method: Method,
        role: Role,
        (path, id, says): (&'static str, &'static str, &'static str),
        handler: H,
    ) -> Route {
        let filter = match method {
            Method::POST => MethodFilter::POST,
            Method::DELETE => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        Route {
            method,
            path,
            id,
            says,
            role,
            query: None,
            body: None,
            done: StatusCode::OK,
            answer: SchemaGenerator::subschema_for::<A>,
            refusals: &[],
            serve: on(filter, handler),
        }
    }

    /// A GET that answers with an `A`.
    pub(super) fn get<A: JsonSchema, H: Handler<T, Arc<Shared>>, T: 'static>(
        said: (&'static str, &'static str, &'static str),
        handler: H,
    ) -> Route {
        Route::new::<A, H, T>(Method::GET, Role::Read, said, handler)
    }

    /// A POST that changes nothing: its question is in the body.
    pub(super) fn ask<A: JsonSchema, H: Handler<T, Arc<Shared>>, T: 'static>(
        said: (&'static str, &'static str, &'static str),
        handler: H,
    ) -> Route {
        Route::new::<A, H, T>(Method::POST, Role::Read, said, handler)
    }

    /// A POST that changes something.
    pub(super) fn order<A: JsonSchema, H: Handler<T, Arc<Shared>>, T: 'static>(
        said: (&'static str, &'static str, &'static str),
        handler: H,
    ) -> Route {
        Route::new::<A, H, T>(Method::POST, Role::Admin, said, handler)
    }

    /// A DELETE.
    pub(super) fn delete<A: JsonSchema, H: Handler<T, Arc<Shared>>, T: 'static>(
        said: (&'static str, &'static str, &'static str),
        handler: H,
    ) -> Route {
        Route::new::<A, H, T>(Method::DELETE, Role::Admin, said, handler)
    }

    /// With the fields of a `Q` in the query.
    pub(super) fn query<Q: JsonSchema>(self) -> Route {
        Route { query: Some(Q::json_schema), ..self }
    }

    /// With a `B` in the body.
    pub(super) fn body<B: JsonSchema>(self) -> Route {
        Route { body: Some(SchemaGenerator::subschema_for::<B>), ..self }
    }

    /// Answers with this status code if all goes well.
    pub(super) fn done(self, done: StatusCode) -> Route {
        Route { done, ..self }
    }

    /// May answer with these status codes, too.
    pub(super) fn refuses(self, refusals: &'static [u16]) -> Route {
        Route { refusals, ..self }
    }

    /// Names of what stands in braces in the path.
    fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// The status codes of all its answers but the good one.
    fn refused_with(&self) -> Vec<u16> {
        let mut codes = vec![401, 403, 503];
        codes.extend_from_slice(self.refusals);
        if self.query.is_some() || self.body.is_some() || self.parameters().next().is_some() {
            codes.push(400);
        }
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

/// The routes below [`BASE`], that of their description included, each for whom it is meant.
pub(super) fn router(routes: Vec<Route>, shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    let described = Arc::new(document(&routes));
    let describe = get(async move || axum::Json((*described).clone()));
    let (mut asks, mut orders) = (Router::new().route(DOCUMENT, describe), Router::new());
    for route in routes {
        match route.role {
            Role::Read => asks = asks.route(route.path, route.serve),
            Role::Admin => orders = orders.route(route.path, route.serve),
        }
    }
    let asks = asks.route_layer(from_fn_with_state(shared.clone(), access::may_read));
    let orders = orders.route_layer(from_fn_with_state(shared.clone(), access::may_change));
    asks.merge(orders).layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// The description of the routes (OpenAPI 3.1).
fn document(routes: &[Route]) -> Value {
    let settings =
        || SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    // What is taken may leave out what has a default; what is answered does not.
    let mut taken = settings().for_deserialize().into_generator();
    let mut answered = settings().for_serialize().into_generator();
    let mut paths = Map::new();
    for route in routes {
        let at = paths.entry(format!("{BASE}{}", route.path)).or_insert_with(|| json!({}));
        at[route.method.as_str().to_ascii_lowercase()] = operation(route, &mut taken, &mut answered);
    }
    let mut schemas = taken.take_definitions(true);
    schemas.extend(answered.take_definitions(true));
    let error = json!({
        "type": "object",
        "description": "Why a request was not carried out.",
        "properties": { "error": { "type": "string", "description": "The reason, in words." } },
        "required": ["error"],
    });
    schemas.insert("Error".to_owned(), error);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth's admin HTTP",
            "description": "What berth ctl asks and orders. docs/operations.md says who may do what.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of http.admin_token_file, or of http.read_token_file for what changes nothing.",
                },
            },
        },
    })
}

fn operation(route: &Route, taken: &mut SchemaGenerator, answered: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = route
        .parameters()
        .map(|name| {
            let schema = json!({ "type": "string", "minLength": 1 });
            json!({ "name": name, "in": "path", "required": true, "schema": schema })
        })
        .collect();
    if let Some(query) = route.query {
        let query = query(taken);
        let required = query.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        for (name, schema) in query.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let needed = required.iter().any(|r| r == name);
            parameters.push(json!({ "name": name, "in": "query", "required": needed, "schema": schema }));
        }
    }
    let answer = |schema: Value, what: &str| json!({ "description": what, "content": { "application/json": { "schema": schema } } });
    let mut responses = Map::new();
    let good = (route.answer)(answered).to_value();
    responses.insert(route.done.as_str().to_owned(), answer(good, "Done."));
    for code in route.refused_with() {
        let what = StatusCode::from_u16(code).ok().and_then(|c| c.canonical_reason()).unwrap_or("Refused");
        let error = json!({ "$ref": "#/components/schemas/Error" });
        responses.insert(code.to_string(), answer(error, what));
    }
    let role = match route.role {
        Role::Read => "A token that may only read is enough.",
        Role::Admin => "A token of an administrator is needed.",
    };
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.says,
        "description": role,
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(body) = route.body {
        let schema = body(taken).to_value();
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_described_once_and_every_reference_leads_somewhere() {
        let routes = super::super::api::routes();
        let document = document(&routes);
        let mut ids = BTreeSet::new();
        for route in &routes {
            let path = format!("{BASE}{}", route.path);
            let described = &document["paths"][&path][route.method.as_str().to_ascii_lowercase()];
            assert_eq!(described["operationId"], route.id, "{path}");
            assert!(ids.insert(route.id), "{} is there twice", route.id);
            assert!(route.says.ends_with('.') && !route.says.contains('\n'), "{}", route.says);
            assert_eq!(described["responses"].as_object().unwrap().len(), route.refused_with().len() + 1);
        }
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|p| p.as_object().unwrap().len()).sum();
        assert_eq!(described, routes.len());
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"").skip(1).map(|r| r.split('"').next().unwrap()) {
            let at = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(at).is_some(), "{reference}");
        }
        assert!(!text.contains("$defs"), "schemas are where OpenAPI looks for them");
    }

    /// What has the same name in a question and in an answer must be the same, for the document has one place for it.
    #[test]
    fn no_two_schemas_have_one_name() {
        let settings = SchemaSettings::draft2020_12;
        let mut taken = settings().for_deserialize().into_generator();
        let mut answered = settings().for_serialize().into_generator();
        for route in super::super::api::routes() {
            operation(&route, &mut taken, &mut answered);
        }
        let (taken, answered) = (taken.take_definitions(true), answered.take_definitions(true));
        for (name, schema) in &taken {
            assert!(answered.get(name).is_none_or(|other| other == schema), "{name}");
        }
    }
}
