//! The search path of host names: a name means in a pod of a namespace what it means in the agent's
//! pod, with that namespace in place of the agent's.

use std::fs;

use resolv_conf::Config;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The names to look up in turn for `name` in the pods of `namespace`, see resolv.conf(5).
pub fn names(name: &str, namespace: &str) -> Vec<String> {
    let text = fs::read(RESOLV_CONF).unwrap_or_default();
    // Invalid lines are ignored, as by the resolver.
    let (config, _) = Config::parse_with_errors(&text);
    names_by(&config, name, namespace)
}

fn names_by(config: &Config, name: &str, namespace: &str) -> Vec<String> {
    let path = config.get_search().map(Vec::as_slice).unwrap_or_default();
    // The kubelet writes NAMESPACE.svc.DOMAIN and svc.DOMAIN. Other systems have no namespaces.
    let is_own = |entry: &String| {
        let rest = entry.split_once('.').map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.starts_with("svc.") && path.iter().any(|other| other == rest))
    };
    if name.ends_with('.') || name == "localhost" || !path.iter().any(is_own) {
        return vec![name.into()];
    }
    let searched = path.iter().map(|entry| match entry.split_once('.') {
        Some((_, rest)) if is_own(entry) => format!("{name}.{namespace}.{rest}."),
        _ => format!("{name}.{entry}."),
    });
    let absolute = [format!("{name}.")];
    if name.matches('.').count() < config.ndots as usize {
        searched.chain(absolute).collect()
    } else {
        absolute.into_iter().chain(searched).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "search injector.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                       nameserver 10.96.0.10\n\
                       options ndots:5\n";

    fn names_in(text: &str, name: &str) -> Vec<String> {
        names_by(&Config::parse_with_errors(text.as_bytes()).0, name, "shop")
    }

    #[test]
    fn short_names_are_those_of_the_namespace() {
        let expected = [
            "db.shop.svc.cluster.local.",
            "db.svc.cluster.local.",
            "db.cluster.local.",
            "db.corp.example.",
            "db.",
        ];
        assert_eq!(names_in(POD, "db"), expected);
        assert_eq!(names_in(POD, "db.other")[1], "db.other.svc.cluster.local.");
    }

    #[test]
    fn names_with_many_dots_come_first_as_they_are() {
        let found = names_in(POD, "a.b.c.d.e.example");
        assert_eq!(found[..2], ["a.b.c.d.e.example.", "a.b.c.d.e.example.shop.svc.cluster.local."]);
    }

    #[test]
    fn other_names_are_left_to_the_resolver() {
        assert_eq!(names_in(POD, "db.example."), ["db.example."]);
        assert_eq!(names_in(POD, "localhost"), ["localhost"]);
        assert_eq!(names_in("search corp.example\nnameserver 10.0.0.1\n", "db"), ["db"]);
        assert_eq!(names_in("", "db"), ["db"]);
    }
}
