//! NATS: the shipped `roles.conf`, in which the marked blocks are repeated.

const ROLES: &str = include_str!("../../../broker-config/nats/roles.conf");

/// The file with these users. The password of each is `$SLUICE_<NAME>_PASSWORD` in the server's environment.
pub fn roles(producers: &[String], workers: &[String]) -> String {
    repeated(&repeated(ROLES, "producer", producers), "worker", workers)
}

/// The text with what stands between `#>> role` and `#<< role` once for each name, in the role's place.
fn repeated(text: &str, role: &str, names: &[String]) -> String {
    let (begin, end) = (format!("      #>> {role}\n"), format!("      #<< {role}\n"));
    let (before, rest) = text.split_once(&begin).expect("the shipped file marks the block");
    let (block, after) = rest.split_once(&end).expect("the shipped file marks the block's end");
    let blocks: String = names.iter().map(|name| named(block, role, name)).collect();
    [before, &blocks, after].concat()
}

fn named(block: &str, role: &str, name: &str) -> String {
    let variable = |name: &str| format!("${}", super::variable(name));
    block
        .replace(&format!("user: {role},"), &format!("user: \"{name}\","))
        .replace(&variable(role), &variable(name))
        .replace(&format!("_INBOX.{role}.>"), &format!("_INBOX.{name}.>"))
        .replace(&format!(".results.{role}.>"), &format!(".results.{name}.>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_what_is_its_own_and_nothing_of_the_template_is_left() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let text = roles(&names(&["web", "batch-2"]), &names(&["gpu"]));
        for there in [
            "user: \"web\", password: $SLUICE_WEB_PASSWORD",
            "user: \"batch-2\", password: $SLUICE_BATCH_2_PASSWORD",
            "_INBOX.web.>",
            "DIRECT.GET.RESULTS.results.batch-2.>",
            "_INBOX.gpu.>",
        ] {
            assert!(text.contains(there), "{there}");
        }
        for gone in
            ["_INBOX.producer", "results.producer", "_INBOX.worker", "$SLUICE_PRODUCER", "$SLUICE_WORKER", "#>>", "#<<"]
        {
            assert!(!text.contains(gone), "{gone}");
        }
    }
}
