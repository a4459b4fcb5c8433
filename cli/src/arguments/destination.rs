//! `--to`: the store that outputs should be in, as a user names it.

use std::path::{Component, Path};

use tvix_node_protocol::control::Destination;

/// What `--to` takes, for every message that refuses something else.
const SUPPORTED: &str = "--to takes the name or key of a member of the team ('tvix-node members' lists them), or \
                         file:///FOLDER for a binary cache in a folder";

/// Reads a destination.
pub fn destination(text: &str) -> Result<Destination, String> {
    if let Some(rest) = text.strip_prefix("file:") {
        return folder(rest).map(Destination::Folder);
    }
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(format!("that is no name; {SUPPORTED}"));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!(
            "stores of the kind '{scheme}' are not supported; {SUPPORTED}"
        ));
    }
    if text.starts_with('/') {
        return Err(format!("a folder is written 'file://{text}'; {SUPPORTED}"));
    }
    if text.starts_with('.') || text.contains('/') {
        return Err(format!("it looks like a relative folder; {SUPPORTED}"));
    }
    Ok(Destination::Member(text.to_owned()))
}

/// The folder of a URL, `file:` taken off: absolute, and written in one way only, so that two commands
/// that mean one folder ask for one store.
fn folder(rest: &str) -> Result<String, String> {
    let path = rest
        .strip_prefix("//")
        .ok_or("'file:' is followed by three slashes and an absolute folder, as in file:///srv/cache")?;
    if !path.starts_with('/') {
        return Err(format!(
            "the folder must be absolute: three slashes follow 'file:', as in 'file:///{path}', and no host does"
        ));
    }
    if let Some(at) = path.find(['?', '#']) {
        return Err(format!(
            "'{}' is not understood: a folder has no parameters",
            &path[at..]
        ));
    }
    let path =
        unescaped(path).ok_or("a '%' is followed by two digits in base 16; the '%' itself is '%25'")?;
    if path.chars().any(char::is_control) {
        return Err("the folder's name has a control character".to_owned());
    }
    let mut folder = String::new();
    for component in Path::new(&path).components() {
        match component {
            Component::Normal(name) => {
                folder.push('/');
                folder.push_str(&name.to_string_lossy());
            }
            Component::ParentDir => return Err("the folder is written without '..'".to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if folder.is_empty() {
        return Err("the root of the file system cannot be a binary cache".to_owned());
    }
    Ok(folder)
}

/// Undoes the percent-encoding of a URL (RFC 3986, section 2.1).
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else { return None };
            let digit = |digit: u8| char::from(digit).to_digit(16);
            let byte = digit(*high)? << 4 | digit(*low)?;
            bytes.push(u8::try_from(byte).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_folders_are_told_apart() {
        let member = |name: &str| Ok(Destination::Member(name.to_owned()));
        let folder = |path: &str| Ok(Destination::Folder(path.to_owned()));
        for name in ["bob", "bob@tower", "tower-2.lan", "file", "Zoë 2"] {
            assert_eq!(destination(name), member(name));
        }
        assert_eq!(destination("file:///srv/cache"), folder("/srv/cache"));
        assert_eq!(destination("file:////srv//./cache/"), folder("/srv/cache"));
        assert_eq!(
            destination("file:///my%20caches/100%25"),
            folder("/my caches/100%")
        );
    }

    #[test]
    fn what_is_neither_is_refused_with_what_is_supported() {
        let cases = [
            ("", "no name"),
            ("./cache", "relative folder"),
            ("../cache", "relative folder"),
            ("cache/x", "relative folder"),
            ("/srv/cache", "'file:///srv/cache'"),
            ("s3://bucket", "kind 's3'"),
            ("ssh-ng://tower", "kind 'ssh-ng'"),
            ("https://cache.example.org", "kind 'https'"),
            ("file://cache", "'file:///cache'"),
            ("file:cache", "three slashes"),
            ("file:/srv", "three slashes"),
            ("file://", "must be absolute"),
            ("file:///", "root"),
            ("file:///a/../b", "'..'"),
            ("file:///a?compression=xz", "'?compression=xz'"),
            ("file:///a%2", "'%25'"),
            ("file:///a%0a", "control character"),
        ];
        for (text, expected) in cases {
            let error = destination(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in ["s3://bucket", "cache/x", "/srv"] {
            let error = destination(text).expect_err(text);
            assert!(
                error.contains("member") && error.contains("file:///FOLDER"),
                "{error}"
            );
        }
    }
}
