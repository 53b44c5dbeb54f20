//! RabbitMQ: the shipped `definitions.json`, in which the users `producer` and `worker` are repeated and every user has a password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const DEFINITIONS: &str = include_str!("../../../broker-config/rabbitmq/definitions.json");
/// The entries in which a user is named, and by which key.
const OF_USERS: [(&str, &str); 3] = [("users", "name"), ("permissions", "user"), ("topic_permissions", "user")];

/// A user's password, and what it is hashed with.
pub struct Secret {
    pub password: String,
    pub salt: [u8; 4],
}

/// The file with these users. It holds the passwords' hashes alone.
pub fn definitions(producers: &[String], workers: &[String], mut secret: impl FnMut(&str) -> Secret) -> Value {
    let mut definitions: Value = serde_json::from_str(DEFINITIONS).expect("the shipped file is JSON");
    for (section, key) in OF_USERS {
        let entries = definitions[section].as_array().expect("the shipped file has this list");
        let repeated = entries.iter().flat_map(|entry| match entry[key].as_str() {
            Some(role @ "producer") => producers.iter().map(|name| named(entry, role, name)).collect(),
            Some(role @ "worker") => workers.iter().map(|name| named(entry, role, name)).collect(),
            _ => vec![entry.clone()],
        });
        definitions[section] = repeated.collect();
    }
    for user in definitions["users"].as_array_mut().into_iter().flatten() {
        let secret = secret(user["name"].as_str().unwrap_or_default());
        user["password_hash"] = hash(&secret).into();
        user["hashing_algorithm"] = json!("rabbit_password_hashing_sha256");
    }
    definitions
}

/// The role's entry for a user of this name: what is called after the role is called after the user.
fn named(entry: &Value, role: &str, name: &str) -> Value {
    let of_role = |text: &str| text.replace(&format!(r"\.{role}\."), &format!(r"\.{name}\."));
    let entry = entry.as_object().into_iter().flatten().map(|(key, value)| {
        let value = match value.as_str() {
            Some(text) if text == role => name.into(),
            Some(text) => of_role(text).into(),
            None => value.clone(),
        };
        (key.clone(), value)
    });
    Value::Object(entry.collect())
}

/// As <https://www.rabbitmq.com/docs/passwords#computing-password-hash> has it.
fn hash(secret: &Secret) -> String {
    let salted = [&secret.salt[..], secret.password.as_bytes()].concat();
    STANDARD.encode([&secret.salt[..], &Sha256::digest(salted)[..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documentation's own example.
    fn secret() -> Secret {
        Secret { password: "test12".into(), salt: [0x90, 0x8d, 0xc6, 0x0a] }
    }

    #[test]
    fn a_password_is_hashed_as_rabbitmq_does() {
        assert_eq!(hash(&secret()), "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
    }

    #[test]
    fn each_user_has_what_is_its_own_and_nothing_of_the_template_is_left() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut asked = Vec::new();
        let made = definitions(&names(&["web", "batch-2"]), &names(&["gpu"]), |user| {
            asked.push(user.to_owned());
            secret()
        });
        assert_eq!(asked, ["web", "batch-2", "gpu", "scaler", "gateway", "manager", "monitoring"]);
        let of = |section: &str, key: &str, name: &str| -> Vec<Value> {
            let entries = made[section].as_array().expect("a list").iter();
            entries.filter(|entry| entry[key] == name).cloned().collect()
        };
        for name in ["web", "batch-2"] {
            let [permission] = &of("permissions", "user", name)[..] else { panic!("one entry of `{name}`") };
            let pattern = |key: &str| permission[key].as_str().expect("a pattern").to_owned();
            assert!(pattern("configure").contains(&format!(r"results\.{name}\..*")), "{permission}");
            assert!(pattern("read").contains(&format!(r"results\.{name}\..*")), "{permission}");
            let topics = of("topic_permissions", "user", name);
            assert_eq!(topics.len(), 2);
            assert!(topics.iter().all(|topic| topic["read"] == format!(r"^inbox\.{name}\.")), "{topics:?}");
        }
        assert_eq!(of("permissions", "user", "gpu").len(), 1);
        let text = made.to_string();
        for gone in ["producer", "\"worker\"", "\"password\"", "\"password_hash\":\"\""] {
            assert!(!text.contains(gone), "{gone}");
        }
    }
}
