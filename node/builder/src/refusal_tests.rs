use std::collections::BTreeMap;

use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind};
use tvix_node_protocol::nix::hash::NixHash;

use super::*;
use crate::config::{Helper, SandboxPath};

fn config() -> Config {
    let mut config = Config::new("/builds", Helper::this_program());
    config.systems = BTreeSet::from(["x86_64-linux".to_owned(), "i686-linux".to_owned()]);
    config.features = BTreeSet::from(["big-parallel".to_owned()]);
    config
}

fn fields() -> DerivationFields {
    DerivationFields {
        name: "x".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/nix/store/00000000000000000000000000000000-x/bin/sh".to_vec(),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
    }
}

fn with(variables: &[(&str, &str)]) -> DerivationFields {
    let mut fields = fields();
    for (name, value) in variables {
        fields.environment.insert((*name).into(), (*value).into());
    }
    fields
}

fn parsed(fields: DerivationFields) -> Derivation {
    let made = fields.instantiate(|_| None).unwrap();
    Derivation::from_aterm_bytes(&made.aterm, "x").unwrap()
}

/// As the owner's own builds are.
fn check(config: &Config, derivation: &Derivation) -> Result<DerivationOptions, Refused> {
    super::check(config, derivation, &path(), false)
}

fn path() -> StorePath {
    StorePath::from_parts([1; 20], "x.drv").unwrap()
}

fn refused(fields: DerivationFields) -> String {
    check(&config(), &parsed(fields)).unwrap_err().to_string()
}

fn accepted(fields: DerivationFields) -> DerivationOptions {
    check(&config(), &parsed(fields)).unwrap()
}

#[test]
fn what_can_be_built_is_accepted() {
    accepted(fields());
    let mut fixed = fields();
    fixed.system = b"i686-linux".to_vec();
    let ca = CAHash::Nar(NixHash::Sha256([1; 32]));
    fixed.outputs.insert("out".to_owned(), OutputKind::Fixed(ca));
    accepted(fixed);
}

/// As Nix writes derivations whose output paths are not known.
#[test]
fn outputs_without_a_known_path_are_refused_by_name() {
    let derivation = |output: &str, more: &str| {
        let text = format!(r#"Derive([("out",{output})],[],[],"x86_64-linux","/b",[],[("out","{more}")])"#);
        Derivation::from_aterm_bytes(text.as_bytes(), "x").unwrap()
    };
    for (output, wanted) in [
        (r#""","r:sha256","""#, "floating content-addressed"),
        (r#""","r:sha256","impure""#, "impure"),
        (
            r#""","","""#,
            "depends on a floating content-addressed derivation",
        ),
    ] {
        let refused = check(&config(), &derivation(output, "")).unwrap_err().to_string();
        assert!(refused.contains(wanted) && refused.contains("'out'"), "{refused}");
    }
    let mut text = fields();
    let ca = CAHash::Text([1; 32]);
    text.outputs.insert("out".to_owned(), OutputKind::Fixed(ca));
    assert!(refused(text).contains("addressed by text"));
}

#[test]
fn foreign_platforms_and_missing_features_are_named() {
    let mut foreign = fields();
    foreign.system = b"aarch64-darwin".to_vec();
    let said = refused(foreign);
    assert!(
        said.contains("aarch64-darwin") && said.contains("'i686-linux', 'x86_64-linux'"),
        "{said}"
    );
    let said = refused(with(&[(
        "requiredSystemFeatures",
        "big-parallel uid-range recursive-nix",
    )]));
    assert!(said.contains("'recursive-nix', 'uid-range'"), "{said}");
    accepted(with(&[("requiredSystemFeatures", " big-parallel\n")]));
}

#[test]
fn wishes_to_leave_the_sandbox_are_refused() {
    assert!(refused(with(&[("__noChroot", "1")])).contains("__noChroot"));
    accepted(with(&[("__noChroot", "")]));
    let wish = parsed(with(&[("__noChroot", "1")]));
    for (names, for_another, allowed) in [
        (["x"], false, true),
        (["x"], true, false),
        (["y"], false, false),
        (["x.drv"], false, false),
    ] {
        let mut config = config();
        config.no_chroot_in_sandbox = names.map(str::to_owned).into();
        let checked = super::check(&config, &wish, &path(), for_another);
        match checked {
            Ok(options) => assert!(allowed && options.no_chroot),
            Err(error) => {
                assert!(!allowed && error.to_string().contains("name 'x' in 'no-chroot-in-sandbox'"))
            }
        }
    }
    assert!(refused(with(&[("__json", r#"{"__noChroot":true}"#)])).contains("__noChroot"));
    let wish = with(&[("__impureHostDeps", "/bin/sh /usr/lib/x")]);
    assert!(refused(wish.clone()).contains("'/bin/sh'"));
    let mut config = config();
    for path in ["/bin/sh", "/usr/lib/x"] {
        let outside = path.into();
        config.sandbox_paths.insert(
            path.into(),
            SandboxPath {
                outside,
                writable: false,
            },
        );
    }
    check(&config, &parsed(wish)).unwrap();
}

#[test]
fn builtin_builders_that_are_not_here_are_named() {
    let mut builtin = fields();
    builtin.builder = b"builtin:teleport".to_vec();
    builtin.system = b"builtin".to_vec();
    assert!(refused(builtin).contains("builtin:teleport"));
}

#[test]
fn attributes_of_the_wrong_form_are_named() {
    for (name, value) in [
        ("exportReferencesGraph", "graph"),
        (
            "exportReferencesGraph",
            "../x /nix/store/00000000000000000000000000000000-x",
        ),
        ("exportReferencesGraph", "graph /etc/passwd"),
        ("__json", r#"{"requiredSystemFeatures":"kvm"}"#),
        ("__json", r#"{"preferLocalBuild":1}"#),
        ("__json", r#"{"exportReferencesGraph":{"graph":[1]}}"#),
    ] {
        let said = refused(with(&[(name, value)]));
        assert!(said.contains("cannot be used"), "{name} {value}: {said}");
    }
    for (name, value) in [("zero", "a\0b"), ("passAsFile", "zero")] {
        let said = check(&config(), &parsed(with(&[(name, value)])));
        assert_eq!(said.is_err(), value.contains('\0'), "{name}");
    }
}

#[test]
fn options_are_read_from_environment_and_structured_attributes() {
    let path = "/nix/store/00000000000000000000000000000000-x";
    let graph = format!("one {path} two {path}/bin/y");
    let options = accepted(with(&[
        ("exportReferencesGraph", &graph),
        ("impureEnvVars", "http_proxy ftp_proxy"),
        ("passAsFile", "a b"),
        ("preferLocalBuild", "1"),
        ("allowSubstitutes", ""),
    ]));
    let store_path: crate::StorePath = path.parse().unwrap();
    assert_eq!(
        options.export_references_graph["two"],
        BTreeSet::from([store_path.clone()])
    );
    assert_eq!(options.impure_environment.len(), 2);
    assert_eq!(options.pass_as_file.len(), 2);
    assert!(options.prefer_local_build && !options.allow_substitutes);

    let json = format!(
        r#"{{"exportReferencesGraph":{{"g":["{path}",["{path}"]]}},"preferLocalBuild":true,"impureEnvVars":["a"]}}"#
    );
    let options = accepted(with(&[("__json", &json), ("passAsFile", "a")]));
    assert_eq!(options.export_references_graph["g"], BTreeSet::from([store_path]));
    assert!(options.prefer_local_build && options.allow_substitutes);
    assert!(options.pass_as_file.is_empty());
}
