//! The JSON Schema of the JSON output of all commands, as published in docs/.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};

use super::{
    apply::PlannedChange, doctor::FaultFinding, event::EventLine, profiles::ProfileReport,
};
use crate::{
    agent::api::{Fault, FaultList, Health, Problem},
    kernel::probe::Finding,
    lifetime::instance::Running,
    report::{Faulted, SCHEMA_VERSION, Versioned},
    scenario::timeline::WrittenLine,
};

/// The schema. Lines are valid under one of its alternatives; its definitions include the answers of
/// the agent's API.
#[must_use]
pub fn schema() -> Schema {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let lines = [
        generator.subschema_for::<EventLine>(),
        generator.subschema_for::<WrittenLine>(),
        versioned::<PlannedChange>(&mut generator),
        versioned::<Running<Faulted>>(&mut generator),
        versioned::<Fault>(&mut generator),
        versioned::<Health>(&mut generator),
        versioned::<Finding>(&mut generator),
        versioned::<FaultFinding>(&mut generator),
        versioned::<ProfileReport>(&mut generator),
    ];
    // Answers of the API are no lines.
    let _ = generator.subschema_for::<FaultList>();
    let _ = generator.subschema_for::<Health>();
    let _ = generator.subschema_for::<Problem>();
    json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "JSON output of injector",
        "description": format!(
            "A line of `--output json`, or of a timeline. This is version {SCHEMA_VERSION} (`schema_version`)."
        ),
        "anyOf": lines,
        "$defs": generator.definitions(),
    })
}

/// The schema of a line with a value of this type, with the type's description.
fn versioned<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let line = generator.subschema_for::<Versioned<T>>();
    let description = T::json_schema(generator).get("description").cloned();
    let name = Versioned::<T>::schema_name();
    if let Some(definition) = generator.definitions_mut().get_mut(name.as_ref()) {
        definition["description"] = description.into();
    }
    line
}
