//! The language and its builtins: expressions and what stock Nix prints for them.

use tvix_node_evaluator::{Action, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate};

/// Evaluates an expression strictly; its printed form, or the rendered error.
fn eval(expression: &str) -> Result<String, String> {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Strict),
    };
    let mut result = Err("no event came".to_owned());
    evaluate(
        &Options::default(),
        &[target],
        &DryRun::default(),
        &mut |event| match event {
            Event::Value { text, .. } => result = Ok(String::from_utf8_lossy(&text).into_owned()),
            Event::Failed { error, .. } => result = Err(error.text),
            Event::Finished { .. } => {}
            Event::Derivation(_) => panic!("a value was asked for"),
        },
    )
    .expect("the options are valid");
    result
}

/// Expressions, and what stock Nix 2.8 prints for them.
const PRINTED: &[(&str, &str)] = &[
    (r"1 + 2 * 3 - 4 / 2", r"5"),
    (r"1.5 + 1", r"2.5"),
    (r"7 / 2", r"3"),
    (r"7.0 / 2", r"3.5"),
    (r"0.1 + 0.2", r"0.3"),
    (r"100000000.0", r"1e+08"),
    (
        r"toString [ 1.0 0.1 123456789.125 ]",
        r#""1.000000 0.100000 123456789.125000""#,
    ),
    (r"9223372036854775807", r"9223372036854775807"),
    (
        r#"let f = { a, b ? a + 1, ... }@args: [ a b (args.c or "none") ]; in [ (f { a = 1; }) (f { a = 1; b = 5; c = "c"; }) ]"#,
        r#"[ [ 1 2 "none" ] [ 1 5 "c" ] ]"#,
    ),
    (
        r"let f = a: b: { c, d ? b }@e: a + b + c + d; in f 1 2 { c = 3; }",
        r"8",
    ),
    (r"map (let f = a: b: a + b; in f 10) [ 1 2 3 ]", r"[ 11 12 13 ]"),
    (r"let x = 1; in let x = 2; y = x; in y", r"2"),
    (r"with { a = 1; b = 2; }; with { b = 3; }; [ a b ]", r"[ 1 3 ]"),
    (r"let b = 1; in with { b = 2; }; b", r"1"),
    (
        r"rec { a = b + 1; b = 1; c = { inherit a; }; }",
        r"{ a = 2; b = 1; c = { a = 2; }; }",
    ),
    (
        r"let s = { a = 1; b = 2; }; in { inherit (s) a b; c = { inherit (s) a; }; }",
        r"{ a = 1; b = 2; c = { a = 1; }; }",
    ),
    (
        r"{ a.b.c = 1; a.b.d = 2; a.e = 3; }",
        r"{ a = { b = { c = 1; d = 2; }; e = 3; }; }",
    ),
    (
        r#"{ ${"a" + "b"} = 1; "c d" = 2; ${null} = 3; }"#,
        r#"{ ab = 1; "c d" = 2; }"#,
    ),
    (r#"rec { ${"x"} = y; y = 1; }"#, r"{ x = 1; y = 1; }"),
    (r"{ a = { b = 1; }; }.a.b or 2", r"1"),
    (r"{ a = { b = 1; }; }.a.c or 2", r"2"),
    (r#"{ a = 1; }.a.b.c or "x""#, r#""x""#),
    (r"{ a = { b = 1; }; } ? a.b", r"true"),
    (r"{ a = { b = 1; }; } ? a.c", r"false"),
    (r"1 ? a", r"false"),
    (
        r"{ a = 1; b = 2; } // { b = 3; c = 4; } // { a = 5; }",
        r"{ a = 5; b = 3; c = 4; }",
    ),
    (r"[ 1 2 ] ++ [ ] ++ [ 3 ]", r"[ 1 2 3 ]"),
    (r"!true || false -> true", r"true"),
    (r#"if 1 < 2 then "yes" else throw "no""#, r#""yes""#),
    (
        r#"[ (1 == 1.0) ("a" == "a") ([ 1 2 ] == [ 1 2 ]) ({ a = 1; } == { a = 1; }) (null == false) ]"#,
        r"[ true true true true false ]",
    ),
    (
        r"let f = x: x; in [ (f == f) ([ f ] == [ f ]) ({ inherit f; } == { inherit f; }) ]",
        r"[ false true true ]",
    ),
    (
        r#"[ (1 < 1.5) ("a" < "b") ([ 1 2 ] < [ 1 3 ]) (/a < /b) ([ ] < [ 1 ]) ]"#,
        r"[ true true true true true ]",
    ),
    (r#""a${"b"}c${toString 1}""#, r#""abc1""#),
    (
        r#"''
  two
    lines ${"x"}
''"#,
        r#""two\n  lines x\n""#,
    ),
    (r#"/a/b + "/c/../d""#, r"/a/b/d"),
    (r"/a + /b", r"/a/b"),
    (r#"/. + "a""#, r"/a"),
    (r"toString [ 1 [ ] ]", r#""1 ""#),
    (r"toString [ [ ] 1 ]", r#""1""#),
    (
        r#"toString [ [ 1 [ 2 3 ] ] true false null "x" ]"#,
        r#""1 2 3 1   x""#,
    ),
    (
        r"[ (toString true) (toString false) (toString null) (toString 1.25) ]",
        r#"[ "1" "" "" "1.250000" ]"#,
    ),
    (
        r#"toString { __toString = self: "v" + self.x; x = "1"; }"#,
        r#""v1""#,
    ),
    (r#"toString { outPath = "/x"; }"#, r#""/x""#),
    (r#""${{ outPath = "/x"; __toString = s: "str"; }}""#, r#""str""#),
    (r"{ __functor = self: x: self.y + x; y = 1; } 2", r"3"),
    (
        r"builtins.functionArgs ({ a, b ? 1, ... }: a)",
        r"{ a = false; b = true; }",
    ),
    (r"builtins.functionArgs (x: x)", r"{ }"),
    (r"builtins.functionArgs (x: { a, b ? 2 }: a)", r"{ }"),
    (
        r"rec { __overrides = { b = 10; }; a = b; b = 1; }",
        r"{ __overrides = { b = 10; }; a = 10; b = 10; }",
    ),
    (
        r"let o = rec { x = y; y = 1; __overrides = { y = 2; z = 3; }; }; in [ o.x o.y o.z ]",
        r"[ 2 2 3 ]",
    ),
    (
        r#"builtins.attrNames { b = 1; a = 2; "c d" = 3; }"#,
        r#"[ "a" "b" "c d" ]"#,
    ),
    (r"builtins.attrValues { b = 1; a = 2; }", r"[ 2 1 ]"),
    (
        r#"builtins.listToAttrs [ { name = "a"; value = 1; } { name = "a"; value = 2; } { name = "b"; value = 3; } ]"#,
        r"{ a = 1; b = 3; }",
    ),
    (
        r"builtins.intersectAttrs { a = 1; c = 3; } { a = 10; b = 20; c = 30; }",
        r"{ a = 10; c = 30; }",
    ),
    (
        r#"builtins.removeAttrs { a = 1; b = 2; c = 3; } [ "a" "x" "c" ]"#,
        r"{ b = 2; }",
    ),
    (
        r#"builtins.catAttrs "a" [ { a = 1; } { b = 2; } { a = 3; } ]"#,
        r"[ 1 3 ]",
    ),
    (
        r"builtins.mapAttrs (n: v: n + toString v) { a = 1; b = 2; }",
        r#"{ a = "a1"; b = "b2"; }"#,
    ),
    (
        r"builtins.zipAttrsWith (n: vs: { inherit n vs; }) [ { a = 1; } { a = 2; b = 3; } ]",
        r#"{ a = { n = "a"; vs = [ 1 2 ]; }; b = { n = "b"; vs = [ 3 ]; }; }"#,
    ),
    (
        r#"builtins.groupBy (x: if x < 3 then "small" else "big") [ 1 2 3 4 ]"#,
        r"{ big = [ 3 4 ]; small = [ 1 2 ]; }",
    ),
    (
        r"builtins.partition (x: x > 2) [ 1 2 3 4 ]",
        r"{ right = [ 3 4 ]; wrong = [ 1 2 ]; }",
    ),
    (
        r"builtins.sort (a: b: a.k < b.k) [ { k = 2; v = 1; } { k = 1; v = 2; } { k = 2; v = 3; } { k = 1; v = 4; } ]",
        r"[ { k = 1; v = 2; } { k = 1; v = 4; } { k = 2; v = 1; } { k = 2; v = 3; } ]",
    ),
    (
        r"builtins.genericClosure { startSet = [ { key = 1; } ]; operator = x: if x.key < 5 then [ { key = x.key + 1; } { key = x.key * 2; } ] else [ ]; }",
        r"[ { key = 1; } { key = 2; } { key = 3; } { key = 4; } { key = 6; } { key = 5; } { key = 8; } ]",
    ),
    (r"builtins.foldl' (a: b: a * 10 + b) 0 [ 1 2 3 ]", r"123"),
    (r"builtins.concatMap (x: [ x (x * 2) ]) [ 1 2 ]", r"[ 1 2 2 4 ]"),
    (r"builtins.concatLists [ [ 1 ] [ ] [ 2 3 ] ]", r"[ 1 2 3 ]"),
    (
        r"[ (builtins.any (x: x > 2) [ 1 2 3 ]) (builtins.all (x: x > 2) [ 1 2 3 ]) (builtins.elem 2 [ 1 2 ]) ]",
        r"[ true false true ]",
    ),
    (r"builtins.genList (x: x * x) 4", r"[ 0 1 4 9 ]"),
    (
        r"[ (builtins.head [ 1 2 ]) (builtins.tail [ 1 2 3 ]) (builtins.length [ 1 2 3 ]) (builtins.elemAt [ 1 2 3 ] 1) ]",
        r"[ 1 [ 2 3 ] 3 2 ]",
    ),
    (r"builtins.filter (x: x > 1) [ 1 2 3 ]", r"[ 2 3 ]"),
    (
        r#"map (n: builtins.parseDrvName n) [ "nix-0.12pre" "a-b-c" "hello-2.10" "x-1-2" "a-" "1-2" ]"#,
        r#"[ { name = "nix"; version = "0.12pre"; } { name = "a-b-c"; version = ""; } { name = "hello"; version = "2.10"; } { name = "x"; version = "1-2"; } { name = "a-"; version = ""; } { name = "1"; version = "2"; } ]"#,
    ),
    (
        r#"map (v: builtins.compareVersions "1.2" v) [ "1.2" "1.2.0" "1.2pre" "1.10" "1.a" "1" ]"#,
        r"[ 0 -1 1 -1 1 1 ]",
    ),
    (
        r#"builtins.splitVersion "1.2pre3-x.y""#,
        r#"[ "1" "2" "pre" "3" "x" "y" ]"#,
    ),
    (r#"builtins.substring 1 2 "abcd""#, r#""bc""#),
    (r#"builtins.substring 2 (-1) "abcd""#, r#""cd""#),
    (r#"builtins.substring 10 2 "abcd""#, r#""""#),
    (
        r#"builtins.replaceStrings [ "a" "" "b" ] [ "1" "-" "2" ] "abc""#,
        r#""1-b-c-""#,
    ),
    (
        r#"builtins.replaceStrings [ "oo" "o" ] [ "1" "2" ] "foo boo o""#,
        r#""f1 b1 2""#,
    ),
    (r#"builtins.concatStringsSep ", " [ "a" "b" ]"#, r#""a, b""#),
    (r#"builtins.stringLength "äb""#, r"3"),
    (r#"builtins.match "(a)(b)?(c*)" "accc""#, r#"[ "a" null "ccc" ]"#),
    (r#"builtins.match "a" "ab""#, r"null"),
    (
        r#"builtins.split "(a)|b" "xaybz""#,
        r#"[ "x" [ "a" ] "y" [ null ] "z" ]"#,
    ),
    (r#"builtins.split "" "ab""#, r#"[ "" [ ] "a" [ ] "b" [ ] "" ]"#),
    (
        r#"builtins.hashString "sha256" "abc""#,
        r#""ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#,
    ),
    (
        r#"builtins.hashString "md5" "abc""#,
        r#""900150983cd24fb0d6963f7d28e17f72""#,
    ),
    (
        r#"builtins.hashString "sha1" """#,
        r#""da39a3ee5e6b4b0d3255bfef95601890afd80709""#,
    ),
    (
        r#"builtins.hashString "sha512" "abc""#,
        r#""ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f""#,
    ),
    (
        r#"builtins.fromJSON ''{ "a": [ 1, 2.5, true, null, "x\u00e9\n" ], "b": {}, "a2": -3, "a": 4 }''"#,
        r"{ a = 4; a2 = -3; b = { }; }",
    ),
    (
        r#"builtins.toJSON { b = [ 1 null true ]; a = "x\"\n\\"; c = { }; d = { outPath = "/o"; z = 1; }; e = { __toString = s: "S"; }; }"#,
        r#""{\"a\":\"x\\\"\\n\\\\\",\"b\":[1,null,true],\"c\":{},\"d\":\"/o\",\"e\":\"S\"}""#,
    ),
    (
        r#"builtins.toXML { a = 1; b = [ true null "x<&\"" ]; c = x: x; d = { y, z ? 1, ... }@w: y; e = 1.5; }"#,
        r#""<?xml version='1.0' encoding='utf-8'?>\n<expr>\n  <attrs>\n    <attr name=\"a\">\n      <int value=\"1\" />\n    </attr>\n    <attr name=\"b\">\n      <list>\n        <bool value=\"true\" />\n        <null />\n        <string value=\"x&lt;&amp;&quot;\" />\n      </list>\n    </attr>\n    <attr name=\"c\">\n      <function>\n        <varpat name=\"x\" />\n      </function>\n    </attr>\n    <attr name=\"d\">\n      <function>\n        <attrspat ellipsis=\"1\" name=\"w\">\n          <attr name=\"y\" />\n          <attr name=\"z\" />\n        </attrspat>\n      </function>\n    </attr>\n    <attr name=\"e\">\n      <float value=\"1.5\" />\n    </attr>\n  </attrs>\n</expr>\n""#,
    ),
    (
        r#"builtins.tryEval (throw "x")"#,
        r"{ success = false; value = false; }",
    ),
    (
        r"builtins.tryEval (assert false; 1)",
        r"{ success = false; value = false; }",
    ),
    (r#"(builtins.tryEval { a = throw "lazy"; }).success"#, r"true"),
    (r"builtins.seq 1 2", r"2"),
    (r"builtins.deepSeq { a = [ 1 2 ]; } 3", r"3"),
    (
        r#"[ (baseNameOf "/a/b") (baseNameOf "a/b/") (baseNameOf "/") (baseNameOf "a//") (baseNameOf /a/b) ]"#,
        r#"[ "b" "b" "" "" "b" ]"#,
    ),
    (
        r#"[ (dirOf "/a/b") (dirOf "a") (dirOf "/a") (dirOf /a/b) ]"#,
        r#"[ "/a" "." "/" /a ]"#,
    ),
    (
        r"[ (builtins.ceil 1.2) (builtins.floor (-1.2)) (builtins.bitAnd 12 10) (builtins.bitOr 12 10) (builtins.bitXor 12 10) ]",
        r"[ 2 -2 8 14 6 ]",
    ),
    (r#"builtins.toPath "/a/../b""#, r#""/b""#),
    (
        r#"placeholder "out""#,
        r#""/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9""#,
    ),
    (
        r#"map builtins.typeOf [ 1 1.0 "s" ./. null true [ ] { } (x: x) builtins.map ]"#,
        r#"[ "int" "float" "string" "path" "null" "bool" "list" "set" "lambda" "lambda" ]"#,
    ),
    (
        r"[ builtins.map (builtins.map (x: x)) (x: x) ]",
        r"[ <PRIMOP> <PRIMOP-APP> <LAMBDA> ]",
    ),
    (
        r"let l = [ 1 2 ]; in [ l l { a = l; } ]",
        r"[ [ 1 2 ] «repeated» { a = «repeated»; } ]",
    ),
    (r"let a = { b = 1; }; in [ a a ]", r"[ { b = 1; } «repeated» ]"),
    (
        r#"let x = { "if" = 1; "a b" = 2; a' = 3; or = 4; }; in x"#,
        r#"{ "a b" = 2; a' = 3; "if" = 1; or = 4; }"#,
    ),
    (r#""$${a} \${b} $""#, r#""$\${a} \${b} $""#),
    (r"''a ''${b} '''' ''\n$''", r#""a \${b} ''' \n$""#),
    (r#"[ (x: x) { } [ ] "" ]"#, r#"[ <LAMBDA> { } [ ] "" ]"#),
    (
        r#"builtins.getContext "${builtins.toFile "a" "x"}""#,
        r#"{ "/nix/store/12wigjpizrn8axaqxj288q1b751qmwya-a" = { path = true; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; outputs = [ "out" "dev" ]; }; in builtins.getContext "${d}${d.dev}${d.drvPath}""#,
        r#"{ "/nix/store/hx8vc8l2pwdjwp4wglkymq9988fy424a-d.drv" = { allOutputs = true; outputs = [ "dev" "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.toXML { x = "${d}"; })"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { outputs = [ "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.toJSON { x = "${d}"; })"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { outputs = [ "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.concatStringsSep "${d}" [ "a" "b" ])"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { outputs = [ "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.replaceStrings [ "a" ] [ "${d}" ] "b")"#,
        r"{ }",
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.replaceStrings [ "b" ] [ "${d}" ] "b")"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { outputs = [ "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.substring 0 0 "${d}")"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { outputs = [ "out" ]; }; }"#,
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in map builtins.hasContext [ (builtins.head (builtins.match "(.*)" "${d}")) (builtins.head (builtins.split "x" "${d}")) (builtins.unsafeDiscardStringContext "${d}") (baseNameOf "${d}") (dirOf "${d}") ]"#,
        r"[ false false false true true ]",
    ),
    (
        r#"let d = derivation { name = "d"; builder = "b"; system = "s"; }; in builtins.getContext (builtins.unsafeDiscardOutputDependency d.drvPath)"#,
        r#"{ "/nix/store/9m3vsva6r393zgjc1g7ncynv7cvdx6sj-d.drv" = { path = true; }; }"#,
    ),
    (
        r#"builtins.getContext (builtins.appendContext "x" { "/nix/store/00000000000000000000000000000000-d.drv" = { outputs = [ "out" "dev" ]; allOutputs = true; path = true; }; })"#,
        r#"{ "/nix/store/00000000000000000000000000000000-d.drv" = { allOutputs = true; outputs = [ "dev" "out" ]; path = true; }; }"#,
    ),
];

#[test]
fn expressions_print_as_in_stock_nix() {
    for (expression, expected) in PRINTED {
        assert_eq!(eval(expression).as_deref(), Ok(*expected), "{expression}");
    }
}

/// Expressions that must be refused, and a part of the message.
const REFUSED: &[(&str, &str)] = &[
    ("let x = x; in x", "infinite recursion encountered"),
    ("rec { a = b; b = a; }.a", "infinite recursion encountered"),
    (
        "let a = { inherit (a) b; }; in a.b",
        "infinite recursion encountered",
    ),
    (
        "let a = a // { b = 1; }; in a.b",
        "infinite recursion encountered",
    ),
    ("let x = \"${x}\"; in x", "infinite recursion encountered"),
    ("undefined", "undefined variable 'undefined'"),
    ("with { a = 1; }; b", "undefined variable 'b'"),
    ("{ hello = 1; }.helo", "attribute 'helo' missing"),
    ("{ hello = 1; }.helo", "Did you mean hello?"),
    ("({ a }: a) { }", "called without required argument 'a'"),
    (
        "({ a }: a) { a = 1; b = 2; }",
        "called with unexpected argument 'b'",
    ),
    (
        "1 2",
        "attempt to call something which is not a function but an integer: 1",
    ),
    ("1 + \"a\"", "cannot add a string to an integer"),
    ("\"a\" + 1", "cannot coerce an integer to a string: 1"),
    ("\"${x: x}\"", "cannot coerce a function to a string"),
    ("[ 1 ] < 1", "cannot compare a list with an integer"),
    ("{ } < { }", "values of that type are incomparable"),
    ("9223372036854775807 + 1", "integer overflow"),
    ("1 / 0", "division by zero"),
    ("1.0 / 0", "division by zero"),
    (
        "let n = \"a\"; in { a = 1; ${n} = 2; }",
        "dynamic attribute 'a' already defined",
    ),
    ("assert 1 == 2; 1", "is not equal to"),
    ("assert false; 1", "assertion 'false' failed"),
    (
        "abort \"x\"",
        "evaluation aborted with the following error message: 'x'",
    ),
    ("builtins.tryEval (abort \"x\")", "evaluation aborted"),
    ("builtins.tryEval (1 + { })", "cannot add a set to an integer"),
    (
        "builtins.elemAt [ 1 ] 1",
        "'builtins.elemAt' called with index 1 on a list of size 1",
    ),
    ("builtins.head [ ]", "'builtins.head' called on an empty list"),
    ("builtins.toJSON (x: x)", "cannot convert a function to JSON"),
    ("builtins.fromJSON \"{\"", "failed to parse JSON"),
    ("builtins.substring (-1) 1 \"a\"", "negative start position"),
    ("builtins.match \"(\" \"a\"", "invalid regular expression '('"),
    (
        "builtins.outputOf \"x\" \"out\"",
        "the builtin 'outputOf' is not supported yet",
    ),
    ("<nixpkgs>", "file 'nixpkgs' was not found in the Nix search path"),
    ("import /nonexistent", "path '/nonexistent' does not exist"),
    (
        "/a + \"${builtins.toFile \"a\" \"b\"}\"",
        "cannot be appended to a path",
    ),
    (
        "builtins.readFile (derivation { name = \"a\"; builder = \"b\"; system = \"s\"; })",
        "cannot build during a dry run",
    ),
    // A string that refers to the store must not become a name.
    (
        "let d = derivation { name = \"a\"; builder = \"b\"; system = \"s\"; }; in { ${\"${d}\"} = 1; }",
        "is not allowed to refer to a store path",
    ),
    (
        "let d = derivation { name = \"a\"; builder = \"b\"; system = \"s\"; }; in builtins.toFile \"x\" \"${d}\"",
        "may not reference derivations",
    ),
];

#[test]
fn wrong_expressions_are_refused_with_a_reason() {
    for (expression, expected) in REFUSED {
        match eval(expression) {
            Ok(value) => panic!("{expression} evaluates to {value}"),
            Err(error) => assert!(error.contains(expected), "{expression}: {error}"),
        }
    }
}

#[test]
fn errors_show_the_line_and_a_caret() {
    assert_eq!(
        eval("let\n  x = 1;\nin\nx + nope").expect_err("nope is not defined"),
        "error: undefined variable 'nope'\n       at «string»:4:5:\n            3| in\n            4| x + nope\n             |     ^"
    );
}

#[test]
fn a_failed_element_fails_again_when_asked_again() {
    // The first failure must not leave an empty value behind.
    let text = "let x = throw \"no\"; in [ (builtins.tryEval x).success (builtins.tryEval x).success ]";
    assert_eq!(eval(text).as_deref(), Ok("[ false false ]"));
}
