# `<nix/fetchurl.nix>`: a derivation that the builder itself carries out, without a program.
{
  url,
  name ? baseNameOf (toString url),
  # One of these says what must come out.
  hash ? "",
  sha512 ? "",
  sha1 ? "",
  md5 ? "",
  sha256 ? "",
  outputHash ?
    if hash != "" then
      hash
    else if sha512 != "" then
      sha512
    else if sha1 != "" then
      sha1
    else if md5 != "" then
      md5
    else
      sha256,
  outputHashAlgo ?
    if hash != "" then
      ""
    else if sha512 != "" then
      "sha512"
    else if sha1 != "" then
      "sha1"
    else if md5 != "" then
      "md5"
    else
      "sha256",
  executable ? false,
  unpack ? false,
  impure ? false,
  # Accepted, as it always was, and of no effect.
  system ? "",
}:
derivation (
  {
    inherit
      executable
      name
      unpack
      url
      ;
    system = "builtin";
    builder = "builtin:fetchurl";
    outputHashMode = if executable || unpack then "recursive" else "flat";
    urls = [ url ];
    preferLocalBuild = true;
    # Of no effect either, but part of the derivation's identity.
    impureEnvVars = [
      "http_proxy"
      "https_proxy"
      "ftp_proxy"
      "all_proxy"
      "no_proxy"
    ];
  }
  // (if impure then { __impure = true; } else { inherit outputHash outputHashAlgo; })
)
