# A small graph that builds on any Linux with cargo, without a download: its only tool is `tool`, which `prepare` makes.
{ system ? builtins.currentSystem }:
let
  tool =
    if builtins.pathExists ./tool then builtins.path { name = "tool"; path = ./tool; }
    else throw "run examples/offline/prepare first: it compiles the program that this example builds with";

  build = name: attributes: script: derivation ({
    inherit name system;
    builder = tool;
    args = [ script ];
  } // attributes);
in
rec {
  # One file, made from nothing.
  greeting = build "greeting" { } ''
    echo writing a greeting
    write $out hello, world
  '';

  # Two outputs; the second refers to the first.
  letter = build "letter" { inherit greeting; outputs = [ "out" "envelope" ]; } ''
    mkdir $out
    mkdir $envelope
    copy $greeting $out/text
    write $envelope/contains $out/text
  '';

  # A program that runs: the tool itself, under another name, with what it prints.
  hello = build "hello-1" { inherit tool greeting; } ''
    mkdir $out
    mkdir $out/bin
    copy $tool $out/bin/hello
    executable $out/bin/hello
    link $greeting $out/greeting
  '';

  # Import from derivation: what is evaluated next depends on what was built first.
  generated = build "generated.nix" { } ''
    echo writing an expression
    write $out "imported"
  '';
  imported = build "uses-${import generated}" { } ''
    write $out built after ${import generated} was read
  '';

  # Fails, as builds do.
  broken = build "broken" { inherit greeting; } ''
    echo about to fail
    cat $greeting
    fail 3
  '';
  needsBroken = build "needs-broken" { inherit broken; } ''
    copy $broken $out
  '';

  all = build "all" { inherit greeting letter hello imported; inherit (letter) envelope; } ''
    mkdir $out
    link $greeting $out/greeting
    link $letter $out/letter
    link $envelope $out/envelope
    link $hello $out/hello
    link $imported $out/imported
  '';
}
