# What `import` makes of a `.drv` file: like the result of `derivation`, without its attributes.
described:
let
  output = outputName: common // {
    inherit outputName;
    inherit (described) drvPath type;
    outPath = described.${outputName};
  };
  named = map (name: { inherit name; value = output name; }) described.outputs;
  common = { inherit (described) name outputs; }
    // builtins.listToAttrs named
    // { all = map (each: each.value) named; };
in
(builtins.head named).value
