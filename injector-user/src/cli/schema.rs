//! The JSON Schema of the JSON output of all commands, as published in docs/.

use schemars::{Schema, generate::SchemaSettings, json_schema};

use super::{apply::Planned, doctor::FaultFinding, event::EventLine, profiles::ProfileReport};
use crate::{
    agent::api::{Fault, FaultList, Health, Problem},
    kernel::probe::Finding,
    lifetime::instance::Running,
    report::{SCHEMA_VERSION, Versioned},
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
        generator.subschema_for::<Versioned<Planned>>(),
        generator.subschema_for::<Versioned<Running>>(),
        generator.subschema_for::<Versioned<Fault>>(),
        generator.subschema_for::<Versioned<Health>>(),
        generator.subschema_for::<Versioned<Finding>>(),
        generator.subschema_for::<Versioned<FaultFinding>>(),
        generator.subschema_for::<Versioned<ProfileReport>>(),
    ];
    for _answer in [
        generator.subschema_for::<Fault>(),
        generator.subschema_for::<FaultList>(),
        generator.subschema_for::<Health>(),
        generator.subschema_for::<Problem>(),
    ] {}
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
