use super::*;
use crate::nix::hash::NixHash;

fn fields(name: &str) -> DerivationFields {
    DerivationFields {
        name: name.to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/bin/sh".to_vec(),
        arguments: Vec::new(),
        environment: BTreeMap::from([
            (b"builder".to_vec(), b"/bin/sh".to_vec()),
            (b"name".to_vec(), name.as_bytes().to_vec()),
            (b"system".to_vec(), b"x86_64-linux".to_vec()),
        ]),
    }
}

fn none(_: &StorePath) -> Option<ModuloHash> {
    None
}

/// `derivation { name = "simple"; system = "x86_64-linux"; builder = "/bin/sh"; }`, as stock Nix
/// 2.8 instantiates it.
#[test]
fn a_simple_derivation_has_the_path_that_nix_gives_it() {
    let made = fields("simple").instantiate(none).unwrap();
    assert_eq!(made.drv_path.to_string(), SIMPLE_DRV);
    assert_eq!(made.outputs["out"].to_string(), SIMPLE_OUT);
}
const SIMPLE_DRV: &str = "/nix/store/2wwpgwhlrid6ypd4f01r72hdpr4l7qgz-simple.drv";
const SIMPLE_OUT: &str = "/nix/store/nj83liashqlzmxjq8lyfxrx21whvgpqj-simple";

#[test]
fn what_is_written_reads_back_and_checks() {
    let made = fields("simple").instantiate(none).unwrap();
    let derivation = read_derivation(&made.drv_path, &made.aterm).unwrap();
    let (outputs, modulo) = check_output_paths(&derivation, none).unwrap();
    assert_eq!((outputs, modulo), (made.outputs, made.modulo));
    assert_eq!(derivation.to_aterm_bytes(), made.aterm);
}

#[test]
fn a_claimed_output_path_that_does_not_follow_is_refused() {
    let made = fields("simple").instantiate(none).unwrap();
    let other = fields("simpler").instantiate(none).unwrap();
    let text = String::from_utf8(made.aterm).unwrap();
    let forged = text.replace(
        &made.outputs["out"].to_string(),
        &other.outputs["out"].to_string(),
    );
    let derivation = Derivation::from_aterm_bytes(forged.as_bytes(), "simple").unwrap();
    assert!(matches!(
        check_output_paths(&derivation, none),
        Err(DrvError::Mismatch { .. })
    ));
}

#[test]
fn a_text_under_a_foreign_path_is_refused() {
    let made = fields("simple").instantiate(none).unwrap();
    let other = fields("simpler").instantiate(none).unwrap();
    assert!(matches!(
        read_derivation(&other.drv_path, &made.aterm),
        Err(DrvError::WrongPath { .. })
    ));
}

#[test]
fn an_unknown_input_is_named() {
    let input = fields("input").instantiate(none).unwrap();
    let mut user = fields("user");
    user.input_derivations
        .insert(input.drv_path.clone(), BTreeSet::from(["out".to_owned()]));
    assert!(
        matches!(user.instantiate(none), Err(DrvError::UnknownInput { input: named, .. }) if named == input.drv_path)
    );
}

/// Two fixed-output derivations that differ only in how they fetch have one hash modulo; what is
/// wanted of either must stand in the hash together.
#[test]
fn outputs_of_inputs_with_the_same_hash_are_merged() {
    let user = |first: &[&str], second: &[&str]| {
        let mut user = fields("user");
        let path = |name: &str| fields(name).instantiate(none).unwrap().drv_path;
        let outputs = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        user.input_derivations.insert(path("a"), outputs(first));
        user.input_derivations.insert(path("b"), outputs(second));
        user.instantiate(|_| Some(ModuloHash([7; 32]))).unwrap().outputs
    };
    assert_eq!(user(&["out"], &["dev"]), user(&["dev"], &["out"]));
    assert_eq!(user(&["out"], &["dev"]), user(&["dev", "out"], &["dev", "out"]));
    assert_ne!(user(&["out"], &["dev"]), user(&["dev"], &["dev"]));
}

#[test]
fn fixed_outputs_do_not_depend_on_their_recipe() {
    let fixed = |builder: &str| {
        let mut fixed = fields("fixed");
        fixed.builder = builder.as_bytes().to_vec();
        let ca = CAHash::Nar(NixHash::Sha256([1; 32]));
        fixed.outputs.insert("out".to_owned(), OutputKind::Fixed(ca));
        fixed.instantiate(none).unwrap()
    };
    let (a, b) = (fixed("/bin/a"), fixed("/bin/b"));
    assert_eq!((&a.outputs, a.modulo), (&b.outputs, b.modulo));
    assert_ne!(a.drv_path, b.drv_path);
    let derivation = read_derivation(&a.drv_path, &a.aterm).unwrap();
    assert_eq!(
        check_output_paths(&derivation, none).unwrap(),
        (a.outputs, a.modulo)
    );
}

#[test]
fn bytes_that_need_escapes_survive() {
    let mut odd = fields("odd");
    odd.environment
        .insert(b"text".to_vec(), b"a\"b\\c\nd\re\tf\0g\xff".to_vec());
    let made = odd.instantiate(none).unwrap();
    let derivation = Derivation::from_aterm_bytes(&made.aterm, "odd").unwrap();
    assert_eq!(derivation.environment()["text"], b"a\"b\\c\nd\re\tf\0g\xff");
    assert_eq!(
        fields_of(&derivation)
            .unwrap()
            .instantiate(none)
            .unwrap()
            .drv_path,
        made.drv_path
    );
}

#[test]
fn a_derivation_has_so_many_outputs_and_no_more() {
    let with = |outputs: usize| {
        let mut fields = fields("many");
        let outputs = (0..outputs).map(|number| (format!("o{number}"), OutputKind::InputAddressed));
        fields.outputs = outputs.collect();
        fields
    };
    let most = with(OUTPUTS).instantiate(none).unwrap();
    assert_eq!(most.outputs.len(), OUTPUTS);
    read_derivation(&most.drv_path, &most.aterm).unwrap();
    let error = with(OUTPUTS + 1).instantiate(none).unwrap_err().to_string();
    let refused = "257 outputs, more than the 256 allowed";
    assert!(error.contains(refused), "{error}");
    // What somebody else made.
    let text = String::from_utf8(most.aterm).unwrap();
    let (before, after) = text.split_once("),(\"o10\"").unwrap();
    let twice = before.rsplit_once('(').unwrap().1.replacen("o1", "o1x", 1);
    let text = format!("{before}),({twice}),(\"o10\"{after}");
    let error = read_derivation(&most.drv_path, text.as_bytes()).unwrap_err();
    assert!(error.to_string().contains(refused), "{error}");
}

#[test]
fn a_derivation_has_so_many_bytes_and_no_more() {
    let with = |filling: usize| {
        let mut fields = fields("large");
        let argument = "x".repeat(filling);
        fields.arguments = vec![argument.into_bytes()];
        fields
    };
    let small = with(1).instantiate(none).unwrap();
    let most = DERIVATION_BYTES - small.aterm.len() + 1;
    let made = with(most).instantiate(none).unwrap();
    assert_eq!(made.aterm.len(), DERIVATION_BYTES);
    read_derivation(&made.drv_path, &made.aterm).unwrap();
    let refused = "67108865 bytes, more than the 67108864 allowed";
    let error = with(most + 1).instantiate(none).unwrap_err().to_string();
    assert!(error.contains(refused), "{error}");
    let mut text = made.aterm;
    text.push(b' ');
    let error = read_derivation(&made.drv_path, &text).unwrap_err().to_string();
    assert!(error.contains(refused), "{error}");
}
