# The function `derivation`: a lazy face of `derivationStrict`, with one member per output.
attrs@{
  outputs ? [ "out" ],
  ...
}:
let
  strict = derivationStrict attrs;
  output =
    outputName:
    common
    // {
      inherit outputName;
      inherit (strict) drvPath;
      outPath = strict.${outputName};
      type = "derivation";
    };
  named = map (name: {
    inherit name;
    value = output name;
  }) outputs;
  common =
    attrs
    // builtins.listToAttrs named
    // {
      all = map (each: each.value) named;
      drvAttrs = attrs;
    };
in
(builtins.head named).value
