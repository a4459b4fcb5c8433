//! `derivationStrict`: derivations, and the paths that stock Nix computes for them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tvix_node_evaluator::{Action, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate};

fn eval(expression: &str, host: &DryRun) -> Result<String, String> {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Raw),
    };
    let mut result = Err("no event came".to_owned());
    evaluate(&Options::default(), &[target], host, &mut |event| match event {
        Event::Value { text, .. } => result = Ok(String::from_utf8_lossy(&text).into_owned()),
        Event::Failed { error, .. } => result = Err(error.text),
        Event::Finished { .. } => {}
        Event::Derivation(_) => panic!("a value was asked for"),
    })
    .expect("the options are valid");
    result
}

/// Derivations, and what stock Nix 2.8 says is their `.drv` file and output.
const PATHS: &[(&str, &str)] = &[
    (
        r#"derivation { name = "simple"; builder = "/bin/sh"; system = "x86_64-linux"; }"#,
        r"/nix/store/2wwpgwhlrid6ypd4f01r72hdpr4l7qgz-simple.drv /nix/store/nj83liashqlzmxjq8lyfxrx21whvgpqj-simple",
    ),
    (
        r#"derivation { name = "args"; builder = "/bin/sh"; system = "x86_64-linux"; args = [ "-c" "echo $out" 1 true null 1.5 [ "a" [ "b" ] ] ]; }"#,
        r"/nix/store/hv0gmi947i8srmjbxah20bziwcvi4mhv-args.drv /nix/store/8w6q0khqlnm5c2gv8gwc9g945yb9ffjd-args",
    ),
    (
        r#"derivation { name = "env"; builder = "b"; system = "s"; a = 1; b = true; c = false; d = null; e = [ "x" [ ] ]; f = [ [ ] "x" ]; g = 1.5; h = "line\nquote\"back\\slash\ttab\rcr"; i = { outPath = "/o"; }; j = { __toString = s: "str"; }; }"#,
        r"/nix/store/lmcr93ard2v0sp9372614wlxrkjjsmbx-env.drv /nix/store/mnmnfb1xjqq5aqq67kfdiy08c1ch4yw9-env",
    ),
    (
        r#"derivation { name = "multi"; builder = "b"; system = "s"; outputs = [ "out" "dev" "lib" ]; }"#,
        r"/nix/store/58f8pk0kd3wndxj9mi91g0cgcv7icva8-multi.drv /nix/store/xqgqbhwdm75sqr1lq5kp7hhk2hgbispa-multi",
    ),
    (
        r#"(derivation { name = "multi"; builder = "b"; system = "s"; outputs = [ "dev" "out" ]; }).dev"#,
        r"/nix/store/hfzyp3ljfc3vydz24d55z77k73p9fyk0-multi.drv /nix/store/7k7aywa5infnc5km12p78gbf12mlmf3d-multi-dev",
    ),
    (
        r#"derivation { name = "flat"; builder = "b"; system = "s"; outputHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; outputHashAlgo = "sha256"; outputHashMode = "flat"; }"#,
        r"/nix/store/j9qzls345rcr325srbvyf2jc4agliq0c-flat.drv /nix/store/jafr3l9gcgc9kss6avik01b7k153scmh-flat",
    ),
    (
        r#"derivation { name = "upper"; builder = "b"; system = "s"; outputHash = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"; outputHashAlgo = "sha256"; }"#,
        r"/nix/store/n65br9ayb2rczk3x2hx3mcxpxwlnmcsy-upper.drv /nix/store/372l2lrjb3jwdb3ad34nwrwjlrvn4kyg-upper",
    ),
    (
        r#"derivation { name = "recursive"; builder = "b"; system = "s"; outputHash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"; outputHashAlgo = "sha256"; outputHashMode = "recursive"; }"#,
        r"/nix/store/4hsdvjd0y7ndjrvgccz2slm1d5s1nb3m-recursive.drv /nix/store/d0115vbkqfj4667i7sdmnz4ldqx0a4yb-recursive",
    ),
    (
        r#"derivation { name = "sri"; builder = "b"; system = "s"; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; outputHashMode = "recursive"; }"#,
        r"/nix/store/5dbh3kixp2d34br7zwhc4ld3fc0hmyqq-sri.drv /nix/store/28zhrnm38pnwq7g37ri7j5i66yws5jcz-sri",
    ),
    (
        r#"derivation { name = "sha1"; builder = "b"; system = "s"; outputHash = "da39a3ee5e6b4b0d3255bfef95601890afd80709"; outputHashAlgo = "sha1"; }"#,
        r"/nix/store/2s76gs72dcdn04g761qrbzmr40szphlm-sha1.drv /nix/store/mrx70xd2n5bxdhpnx18jj2glgz66yx5b-sha1",
    ),
    (
        r#"derivation { name = "sha512"; builder = "b"; system = "s"; outputHash = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="; }"#,
        r"/nix/store/p685ic6402r5mpmmmps8c4pmwlcfv4vc-sha512.drv /nix/store/bws4m8lyjv2g91faq7hhlskq1jr6rsjb-sha512",
    ),
    (
        r#"derivation { name = "md5"; builder = "b"; system = "s"; outputHash = "d41d8cd98f00b204e9800998ecf8427e"; outputHashAlgo = "md5"; outputHashMode = "recursive"; }"#,
        r"/nix/store/0c1khzdrfbwzp1m1jp044m8rq9489bbl-md5.drv /nix/store/7q345plqrynm8p43fhjixpl5r7jmzqdm-md5",
    ),
    (
        r#"derivation { name = "empty-hash"; builder = "b"; system = "s"; outputHash = ""; outputHashAlgo = "sha256"; }"#,
        r"/nix/store/jryjjkbkp4ss1dgy00wylx10hxq954p5-empty-hash.drv /nix/store/azq18nw050xhq1brniza4jshwsfwkqd0-empty-hash",
    ),
    (
        r#"let a = derivation { name = "a"; builder = "b"; system = "s"; outputs = [ "out" "dev" ]; }; in derivation { name = "uses"; builder = "${a.dev}/b"; system = "s"; x = a; y = [ a a.dev ]; }"#,
        r"/nix/store/n5smjxkfiszn8jk6ir9dd0bsyzpzr545-uses.drv /nix/store/fzpk9j5b98q95al05g3l657lhw2ni4f2-uses",
    ),
    (
        r#"let f = derivation { name = "f"; builder = "b"; system = "s"; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; }; in derivation { name = "uses-fixed"; builder = "b"; system = "s"; src = f; }"#,
        r"/nix/store/q4lkvry9nqlzbzkdm2qsb4fjjq8a446y-uses-fixed.drv /nix/store/mgj95nkdvif34dkkx8ldjmn8ryxx8wsy-uses-fixed",
    ),
    (
        r#"let f = url: derivation { name = "f"; builder = "b"; system = "s"; inherit url; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; }; in derivation { name = "two-fixed"; builder = "b"; system = "s"; a = f "x"; b = f "y"; }"#,
        r"/nix/store/4mx12ijlyhnlwgvrpn57zq4lk43g01ck-two-fixed.drv /nix/store/093zdk5w3clgmpfyffxxp4kbn1507dk5-two-fixed",
    ),
    (
        r#"derivation { name = "file"; builder = builtins.toFile "builder.sh" "echo hi"; system = "s"; }"#,
        r"/nix/store/l7y3hj5vw1kv58px4ilb6nwzfzpfl24s-file.drv /nix/store/7naxh3g820rxrhn29ng86ikrzfbj4irh-file",
    ),
    (
        r#"derivation { name = "file-refs"; builder = builtins.toFile "builder.sh" "source ${builtins.toFile "setup" "x"}"; system = "s"; }"#,
        r"/nix/store/iypi46jgykyivpag5z3lfprlz0c966pj-file-refs.drv /nix/store/030y9z61l40v22sgsxyghz03zdzaij4m-file-refs",
    ),
    (
        r#"derivation { name = "structured"; builder = "b"; system = "s"; __structuredAttrs = true; outputs = [ "out" "dev" ]; a = 1; b = { c = [ true null "x" ]; d = 1.5; }; e = "\"\n\\\u0001é"; }"#,
        r"/nix/store/dczydnikp4nmjxff8knfifzymlz25zpx-structured.drv /nix/store/rz9sagj4kan0yqsvpm5h3xi30qhfqn7c-structured",
    ),
    (
        r#"let a = derivation { name = "a"; builder = "b"; system = "s"; }; in derivation { name = "structured-deps"; builder = "b"; system = "s"; __structuredAttrs = true; dep = a; deps = { x = [ a ]; s = "${a}/bin"; }; }"#,
        r"/nix/store/4bkl9jm6my2wgslz1r0jsdkcb4ld8izf-structured-deps.drv /nix/store/1iggcizlnycg8i39qax6j1izhys245iy-structured-deps",
    ),
    (
        r#"derivation { name = "nulls"; builder = "b"; system = "s"; __ignoreNulls = true; a = null; b = 1; }"#,
        r"/nix/store/mj9f46jvp31ga8cgc69j16cmws3a4lvc-nulls.drv /nix/store/8jra6m0iw21qh32gxkbb8msmq2awf73s-nulls",
    ),
    (
        r#"derivation { name = "passed"; builder = "b"; system = "s"; passAsFile = [ "text" ]; text = "content"; }"#,
        r"/nix/store/qks2skvzxf32llm1ijhn6g1zcxml8f3i-passed.drv /nix/store/bpx9qwxga84wp9lcj921c5zl4hysc7m3-passed",
    ),
    (
        r#"derivation { name = "out-attr"; builder = "b"; system = "s"; out = "overridden"; }"#,
        r"/nix/store/21k9yqgcag94ldna8dh6sjd6l48h650j-out-attr.drv /nix/store/j71fa1mdyfiiwynjmpdcm3ikp27934hb-out-attr",
    ),
    (
        r#"let a = derivation { name = "a"; builder = "b"; system = "s"; src = builtins.toFile "x" "y"; }; in derivation { name = "dropped-deep"; builder = "b"; system = "s"; drv = builtins.unsafeDiscardOutputDependency a.drvPath; }"#,
        r"/nix/store/ll0fnhy3qskqsrvdidp5f6i4hng2kwdj-dropped-deep.drv /nix/store/bdn8qpy0fwmixi2vqsjkf0ndky1bix3q-dropped-deep",
    ),
    (
        r#"let a = derivation { name = "a"; builder = "b"; system = "s"; }; in derivation { name = "graph"; builder = "b"; system = "s"; exportReferencesGraph = [ "g" a ]; }"#,
        r"/nix/store/wzv6b5rskvnqv470a237lk3vhgg0idyv-graph.drv /nix/store/vkbjcwgzmcmqj631d4lpzchiylh6py79-graph",
    ),
    (
        r#"derivation { name = "placeholders"; builder = "b"; system = "s"; outputs = [ "out" "bin" ]; x = "${placeholder "out"} ${placeholder "bin"}"; }"#,
        r"/nix/store/bmsy8c6rnwgp3p6v4f3fpkdaa82h9y7d-placeholders.drv /nix/store/d4qrfa4j17my6klq112g7g3y28jdpl3n-placeholders",
    ),
    (
        r#"import <nix/fetchurl.nix> { url = "https://example.org/a.tar.gz"; sha256 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"; }"#,
        r"/nix/store/qi9d3aqfxj7xpg98shbaryaf78n1gvk0-a.tar.gz.drv /nix/store/8fb7yhxdpj41755jdwfzykjndjgcx39b-a.tar.gz",
    ),
    (
        r#"import <nix/fetchurl.nix> { url = "https://example.org/a.tar.gz"; hash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; executable = true; name = "x"; }"#,
        r"/nix/store/0maxsjd0wrnm8zx43yy83yaf511rwria-x.drv /nix/store/d6q30mlzfljh7ha1b1m6fnifi34qr99p-x",
    ),
];

#[test]
fn derivations_have_the_paths_of_stock_nix() {
    for (expression, expected) in PATHS {
        let text = format!(
            "let d = {expression}; in \"${{builtins.unsafeDiscardStringContext d.drvPath}} \
             ${{builtins.unsafeDiscardStringContext d.outPath}}\""
        );
        assert_eq!(
            eval(&text, &DryRun::default()).as_deref(),
            Ok(*expected),
            "{expression}"
        );
    }
}

/// Derivations that must be refused, and a part of the message.
const REFUSED: &[(&str, &str)] = &[
    (
        "{ name = \"a\"; builder = \"b\"; }",
        "required attribute 'system' missing",
    ),
    (
        "{ name = \"a\"; system = \"s\"; }",
        "required attribute 'builder' missing",
    ),
    ("{ builder = \"b\"; system = \"s\"; }", "attribute 'name' missing"),
    (
        "{ name = \"a b\"; builder = \"b\"; system = \"s\"; }",
        "invalid derivation name",
    ),
    (
        "{ name = \"a.drv\"; builder = \"b\"; system = \"s\"; }",
        "are allowed to end in '.drv'",
    ),
    // What cannot be coerced fails; it is never dropped.
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; f = x: x; }",
        "cannot coerce a function to a string",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; f = { a = 1; }; }",
        "cannot coerce a set to a string",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; f = [ 1 (x: x) ]; }",
        "cannot coerce a function to a string",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; __structuredAttrs = true; f = x: x; }",
        "cannot convert a function to JSON",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; args = [ { } ]; }",
        "cannot coerce a set to a string",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputs = [ ]; }",
        "empty set of outputs",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputs = [ \"out\" \"out\" ]; }",
        "duplicate derivation output 'out'",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputs = [ \"drvPath\" ]; }",
        "invalid derivation output name 'drvPath'",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputHash = \"zz\"; outputHashAlgo = \"sha256\"; }",
        "wrong length",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputHash = \"\"; }",
        "empty hash requires explicit hash algorithm",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputs = [ \"a\" \"b\" ]; outputHash = \"\"; outputHashAlgo = \"sha256\"; }",
        "multiple outputs are not supported",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; outputHashMode = \"other\"; }",
        "invalid value 'other' for 'outputHashMode'",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; __contentAddressed = true; }",
        "not supported yet",
    ),
    (
        "{ name = \"a\"; builder = \"b\"; system = \"s\"; __impure = true; }",
        "impure derivations are not supported",
    ),
];

#[test]
fn wrong_derivations_are_refused_with_a_reason() {
    for (attrs, expected) in REFUSED {
        // `derivation` itself forces `outputs`; `derivationStrict` is what refuses.
        match eval(&format!("(derivationStrict {attrs}).drvPath"), &DryRun::default()) {
            Ok(path) => panic!("{attrs} gives {path}"),
            Err(error) => assert!(error.contains(expected), "{attrs}: {error}"),
        }
    }
}

#[test]
fn derivations_leave_when_they_are_finished_inputs_first_and_once() {
    let seen: Rc<RefCell<Vec<String>>> = Rc::default();
    let texts: Rc<RefCell<BTreeMap<String, Vec<u8>>>> = Rc::default();
    let (log, contents) = (seen.clone(), texts.clone());
    let host = DryRun::new(move |derivation| {
        log.borrow_mut().push(derivation.drv_path.name().to_owned());
        contents
            .borrow_mut()
            .insert(derivation.drv_path.to_absolute_path(), derivation.aterm.to_vec());
        for reference in derivation.references {
            assert!(
                contents.borrow().contains_key(&reference.to_absolute_path()),
                "inputs come first"
            );
        }
    });
    let text = "let mk = name: inputs: derivation { inherit name inputs; builder = \"b\"; system = \"s\"; }; \
                a = mk \"a\" [ ]; b = mk \"b\" [ a ]; c = mk \"c\" [ a b (mk \"a\" [ ]) ]; in c.drvPath";
    let path = eval(text, &host).expect("it evaluates");
    assert_eq!(*seen.borrow(), ["a.drv", "b.drv", "c.drv"]);
    assert!(texts.borrow()[&path].starts_with(b"Derive("));
}

#[test]
fn a_deep_reference_brings_the_whole_closure() {
    let texts: Rc<RefCell<BTreeMap<String, Vec<u8>>>> = Rc::default();
    let contents = texts.clone();
    let host = DryRun::new(move |derivation| {
        contents
            .borrow_mut()
            .insert(derivation.drv_path.name().to_owned(), derivation.aterm.to_vec());
    });
    let text = "let a = derivation { name = \"a\"; builder = \"b\"; system = \"s\"; src = builtins.toFile \"x\" \"y\"; }; \
                b = derivation { name = \"b\"; builder = \"b\"; system = \"s\"; inherit a; }; in \
                (derivation { name = \"deep\"; builder = \"b\"; system = \"s\"; drv = b.drvPath; }).drvPath";
    assert_eq!(
        eval(text, &host).as_deref(),
        Ok("/nix/store/7q1w416300siv544mmbyvzwp6m19x5sx-deep.drv")
    );
    let text = String::from_utf8_lossy(&texts.borrow()["deep.drv"]).into_owned();
    // Both derivations are there with their outputs and as files, and so is the source.
    for name in [
        "-a.drv\",[\"out\"]",
        "-b.drv\",[\"out\"]",
        "-a.drv\",\"/nix/store/",
        "-x\"",
    ] {
        assert!(text.contains(name), "{name} is missing in {text}");
    }
}
