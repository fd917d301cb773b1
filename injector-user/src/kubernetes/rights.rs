//! The permissions that an agent needs, which it checks once at the start.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

/// A resource and what is done with it.
struct Right {
    group: &'static str,
    resource: &'static str,
    subresource: Option<&'static str>,
    verbs: &'static [&'static str],
    /// Whether only in the agent's own namespace.
    is_own: bool,
}

const READ: &[&str] = &["list", "watch"];

/// What packaging/kubernetes/rbac.yaml grants.
const RIGHTS: [Right; 8] = [
    Right::new("injector.dev", "faultinjections", READ),
    Right {
        subresource: Some("status"),
        ..Right::new("injector.dev", "faultinjections", &["patch"])
    },
    Right::new("", "pods", READ),
    Right::new("", "namespaces", READ),
    Right::new("", "services", READ),
    Right::new("", "endpoints", READ),
    Right::new("events.k8s.io", "events", &["create", "patch"]),
    Right {
        is_own: true,
        ..Right::new("coordination.k8s.io", "leases", &["get", "create", "patch", "delete"])
    },
];

impl Right {
    const fn new(
        group: &'static str,
        resource: &'static str,
        verbs: &'static [&'static str],
    ) -> Self {
        Self { group, resource, subresource: None, verbs, is_own: false }
    }
}

/// The missing permissions, such as `list pods`.
pub async fn missing(client: &Client, namespace: &str) -> kube::Result<Vec<String>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for Right { group, resource, subresource, verbs, is_own } in RIGHTS {
        for verb in verbs {
            let attributes = ResourceAttributes {
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource: subresource.map(Into::into),
                verb: Some((*verb).into()),
                namespace: is_own.then(|| namespace.into()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let review = api.create(&PostParams::default(), &review).await?;
            if !review.status.is_some_and(|status| status.allowed) {
                let below = subresource.map(|name| format!("/{name}")).unwrap_or_default();
                missing.push(format!("{verb} {resource}{below}"));
            }
        }
    }
    Ok(missing)
}
