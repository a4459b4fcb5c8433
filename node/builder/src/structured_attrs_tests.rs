use super::*;

fn written(json: &str) -> Written {
    let attrs = StructuredAttrs::from_json_bytes(json).unwrap();
    let path = StorePath::from_parts([1; 20], "x").unwrap();
    write(
        &attrs,
        &BTreeMap::from([("out".to_owned(), path)]),
        &BTreeMap::new(),
    )
}

fn json(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    let mut out = String::new();
    write_json(&value, &mut out);
    out
}

/// What Nix 2.8 and 2.34 write.
#[test]
fn numbers_are_written_as_nix_does() {
    for (number, expected) in [
        ("0", "0"),
        ("-5", "-5"),
        ("9223372036854775807", "9223372036854775807"),
        ("18446744073709551615", "18446744073709551615"),
        ("0.0", "0.0"),
        ("-0.0", "-0.0"),
        ("1.0", "1.0"),
        ("1.5", "1.5"),
        ("0.1", "0.1"),
        ("123456.789", "123456.789"),
        ("100000000000000.0", "100000000000000.0"),
        ("1e15", "1e+15"),
        ("1.25e16", "1.25e+16"),
        ("0.0001", "0.0001"),
        ("0.00012", "0.00012"),
        ("0.00001", "1e-05"),
        ("-2.5e-7", "-2.5e-07"),
        ("1e100", "1e+100"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("3000000000.0", "3000000000.0"),
    ] {
        assert_eq!(json(number), expected);
    }
}

#[test]
fn keys_are_sorted_at_every_depth_and_strings_escaped() {
    assert_eq!(
        json("{\"b\":[{\"z\":1,\"a\":null}],\"a\":\"\\u0001\\u001f\\b\\f\\n\\r\\t\\\"\\\\/ü€\",\"\":true}"),
        "{\"\":true,\"a\":\"\\u0001\\u001f\\b\\f\\n\\r\\t\\\"\\\\/ü€\",\"b\":[{\"a\":null,\"z\":1}]}"
    );
}

/// As stock Nix wrote them for the same attributes.
#[test]
fn the_shell_file_has_what_a_shell_can_hold() {
    let written = written(
        r#"{"s":"it's","n":null,"t":true,"f":false,"list":[1,"two",true,null,1.0],"elist":[],
            "listfrac":[1,1.5],"listdeep":[[1]],"obj":{"b c":"x'y","a":1,"z":false},"eobj":{},
            "objdeep":{"a":{}},"weird-name":1,"9x":1,"":1,"_x":2,"frac":1.5,
            "big":2147483648,"bigger":5000000000,"huge":9223372036854775807,"float":3000000000.0,"rounded":16777217.5}"#,
    );
    assert_eq!(
        written.shell,
        "declare _x=2\n\
         declare big=-2147483648\n\
         declare bigger=705032704\n\
         declare -a elist=()\n\
         declare -A eobj=()\n\
         declare f=\n\
         declare float=-2147483648\n\
         declare huge=-1\n\
         declare -a list=(1 'two' 1 '' 1 )\n\
         declare n=''\n\
         declare -A obj=(['a']=1 ['b c']='x'\\''y' ['z']= )\n\
         declare -A outputs=(['out']='/nix/store/04106210g40g820g41082041081081g4-x' )\n\
         declare rounded=16777217\n\
         declare s='it'\\''s'\n\
         declare t=1\n"
            .replace(
                "04106210g40g820g41082041081081g4",
                &StorePath::from_parts([1; 20], "x").unwrap().to_basename()[..32]
            )
    );
}

#[test]
fn outputs_take_the_place_of_an_attribute_of_that_name() {
    let written = written(r#"{"outputs":["out"],"zz":1}"#);
    assert!(written.json.starts_with(r#"{"outputs":{"out":"/nix/store/"#));
    assert!(written.json.ends_with(r#"-x"},"zz":1}"#));
}
