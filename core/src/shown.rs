//! What people, logs and errors may see of a URL. There is one way to show one, and it is this: no password, token or key of a URL gets
//! through, in doubt nothing of it.

use url::Url;

/// In place of what is not shown.
pub const MASK: &str = "***";

/// In place of what cannot be read as a URL: nobody knows which part of it is a password.
const UNREADABLE: &str = "(not a URL)";
/// An `@` behind the host: a password with a `/` in it, most likely.
const UNCLEAR: &str = "(a URL with an @ behind its host)";

/// A URL, or several with commas between them, without passwords, tokens, queries and fragments. What has nothing to hide stays as it is
/// written, since people compare it with what they wrote.
pub fn url(text: &str) -> String {
    let text = text.trim();
    // A folder may have any name.
    if text.is_empty() || (text.starts_with("file://") && text.matches("://").count() == 1) {
        return text.to_owned();
    }
    text.split(',').map(|one| of_one(one.trim())).collect::<Vec<_>>().join(",")
}

fn of_one(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        // Such as a folder's path.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-');
        return if text.bytes().all(plain) { text.to_owned() } else { UNREADABLE.to_owned() };
    };
    // `user:password@host` is a URL too, of the scheme `user`.
    if !url.has_host() || url.host_str().is_none_or(str::is_empty) {
        return UNREADABLE.to_owned();
    }
    if url.path().contains('@') {
        return UNCLEAR.to_owned();
    }
    let mut hidden = false;
    if url.password().is_some() {
        hidden |= url.set_password(Some(MASK)).is_ok();
    } else if !url.username().is_empty() {
        // A lone user name is a token.
        hidden |= url.set_username(MASK).is_ok();
    }
    if url.query().is_some() {
        url.set_query(Some(MASK));
        hidden = true;
    }
    if url.fragment().is_some() {
        url.set_fragment(Some(MASK));
        hidden = true;
    }
    if hidden { url.to_string() } else { text.to_owned() }
}

/// Options of object stores (`[registry.options]`) whose values are no secrets. All others are taken for secrets.
const OPEN_OPTIONS: [&str; 29] = [
    "allow_http",
    "aws_allow_http",
    "aws_bucket",
    "aws_bucket_name",
    "aws_conditional_put",
    "aws_default_region",
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "aws_imdsv1_fallback",
    "aws_region",
    "aws_s3_express",
    "aws_skip_signature",
    "aws_unsigned_payload",
    "aws_virtual_hosted_style_request",
    "azure_allow_http",
    "azure_container_name",
    "azure_endpoint",
    "azure_skip_signature",
    "azure_storage_account_name",
    "azure_storage_endpoint",
    "azure_storage_use_emulator",
    "azure_use_azure_cli",
    "azure_use_fabric_endpoint",
    "connect_timeout",
    "google_bucket",
    "google_bucket_name",
    "google_skip_signature",
    "timeout",
];

/// The value of an object store's option.
pub fn option<'v>(name: &str, value: &'v str) -> std::borrow::Cow<'v, str> {
    if !OPEN_OPTIONS.contains(&name.to_ascii_lowercase().as_str()) {
        MASK.into()
    } else if value.contains("://") {
        url(value).into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_secrets_unless_they_are_known_not_to_be() {
        for (name, value, shown) in [
            ("aws_region", "here", "here"),
            ("AWS_Region", "here", "here"),
            ("aws_endpoint", "http://user:hunter2@minio:9000", "http://user:***@minio:9000/"),
            ("azure_storage_account_key", "hunter2", "***"),
            ("aws_secret_access_key", "hun\nter2", "***"),
            ("anything_new", "hunter2", "***"),
        ] {
            assert_eq!(option(name, value), shown, "{name}");
        }
    }

    #[test]
    fn no_secret_of_a_url_is_shown() {
        for (text, shown) in [
            ("nats://worker:hunter2@host:4222", "nats://worker:***@host:4222"),
            ("nats://hunter2@host:4222", "nats://***@host:4222"),
            ("nats://hunter2@h1:4222, nats://hunter2@h2:4222", "nats://***@h1:4222,nats://***@h2:4222"),
            ("nats://a:1,nats://b:2", "nats://a:1,nats://b:2"),
            ("nat://worker:hunter2@127.0.0.1:1", "nat://worker:***@127.0.0.1:1"),
            ("amqps://user:hunter2@host/%2f", "amqps://user:***@host/%2f"),
            ("s3://key:hunter2@bucket/folder", "s3://key:***@bucket/folder"),
            ("s3://models/sluice/", "s3://models/sluice/"),
            ("az://container/x?sv=1&sig=hunter2", "az://container/x?***"),
            ("https://host/x#hunter2", "https://host/x#***"),
            // A password with a comma, a slash, or a colon in the wrong place.
            ("nats://user:hun,ter2@host", "(not a URL),(not a URL)"),
            ("nats://user:12/hunter2@host", "(a URL with an @ behind its host)"),
            ("s3://user:hunter2/x@host", "(not a URL)"),
            ("user:hunter2@host", "(not a URL)"),
            ("nats:/user:hunter2@host", "(not a URL)"),
            ("nats//user:hunter2@host", "(not a URL)"),
            ("localhost:4222", "(not a URL)"),
            ("/srv/models", "/srv/models"),
            ("file:///srv/a@b, c", "file:///srv/a@b, c"),
            ("file:///srv,nats://user:hunter2@host", "(not a URL),nats://user:***@host"),
            ("", ""),
        ] {
            assert_eq!(url(text), shown, "{text}");
        }
    }
}
