//! Assembles, validates and describes the kernels.
//!
//! `wgsl/NAME.wgsl` is a kernel. A line `#include "FILE"` stands for `wgsl/common/FILE`:
//! whole declarations that several kernels share. What the device gets is the one complete
//! text that results, validated here with naga, so that a broken shader fails the build.
//!
//! From naga's view of that text a Rust module of the same name is generated: the source,
//! its bindings, its overrides, its integer constants, and `Params`, the uniform of that
//! name, field by field. Nothing of it is written by hand twice.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, mem};

use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Expression, Literal, Module, Scalar, ScalarKind, TypeInner};

fn main() {
    println!("cargo:rerun-if-changed=wgsl");
    let folder = Path::new("wgsl");
    let mut kernels: Vec<_> = fs::read_dir(folder)
        .expect("the folder wgsl")
        .map(|entry| entry.expect("an entry of wgsl").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    kernels.sort();
    let mut out = String::new();
    let mut names = Vec::new();
    for path in kernels {
        let name = path.file_stem().and_then(|s| s.to_str()).expect("a plain name").to_owned();
        let mut texts = Vec::new();
        include(folder, &path, &mut BTreeSet::new(), &mut texts);
        let source = texts.concat();
        let module = match naga::front::wgsl::parse_str(&source) {
            Ok(module) => module,
            Err(e) => panic!("{name}.wgsl: {}", e.emit_to_string(&source)),
        };
        // unpack2x16float, which all of WebGPU has.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        // A device without subgroups is never given these.
        if name.ends_with("_subgroups") {
            capabilities |= Capabilities::SUBGROUP;
        }
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        validator.subgroup_stages(ShaderStages::COMPUTE);
        validator.subgroup_operations(SubgroupOperationSet::all());
        if let Err(e) = validator.validate(&module) {
            panic!("{name}.wgsl: {}", e.emit_to_string(&source));
        }
        describe(&name, &texts, &module, &mut out);
        names.push(name);
    }
    writeln!(out, "/// All kernels.\npub const ALL: [&crate::Kernel; {}] = [", names.len())
        .unwrap();
    for name in names {
        writeln!(out, "    &{name}::KERNEL,").unwrap();
    }
    out.push_str("];\n");
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    fs::write(target, out).expect("OUT_DIR can be written");
}

/// Appends a file's lines, what it includes in place of its `#include` lines, each once; a
/// stretch of lines from one file is one text.
fn include(folder: &Path, path: &Path, seen: &mut BTreeSet<String>, texts: &mut Vec<String>) {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut stretch = String::new();
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(file) => {
                if seen.insert(file.to_owned()) {
                    texts.push(mem::take(&mut stretch));
                    include(folder, &folder.join("common").join(file), seen, texts);
                }
            }
            None => writeln!(stretch, "{line}").unwrap(),
        }
    }
    texts.push(stretch);
}

fn describe(name: &str, texts: &[String], module: &Module, out: &mut String) {
    let entry = match module.entry_points.as_slice() {
        [entry] => entry,
        others => panic!("{name}.wgsl has {} entry points, it needs one", others.len()),
    };
    let summary = texts[0].lines().next().unwrap_or_default().trim_start_matches(['/', ' ']);
    writeln!(out, "/// {summary}\npub mod {name} {{").unwrap();
    writeln!(out, "    use crate::{{Access, Binding, Kernel}};").unwrap();
    let mut bindings = Vec::new();
    let mut params = String::new();
    out.push_str("    /// Numbers of its bindings.\n    pub mod bindings {\n");
    for (_, global) in module.global_variables.iter() {
        let Some(place) = &global.binding else { continue };
        assert_eq!(place.group, 0, "{name}.wgsl: one bind group");
        let variable = global.name.as_deref().expect("a binding has a name");
        let access = match global.space {
            AddressSpace::Uniform => "Uniform",
            AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                "ReadWrite"
            }
            AddressSpace::Storage { .. } => "Read",
            other => panic!("{name}.wgsl: {variable} is in {other:?}"),
        };
        let number = place.binding;
        bindings.push((number, access));
        let constant = variable.to_uppercase();
        writeln!(out, "        /// `{variable}`.").unwrap();
        writeln!(out, "        pub const {constant}: u32 = {number};").unwrap();
        if variable == "params" {
            describe_params(name, module, &module.types[global.ty].inner, &mut params);
        }
    }
    writeln!(out, "    }}\n{params}").unwrap();
    bindings.sort_unstable();
    let storage = bindings.iter().filter(|(_, access)| *access != "Uniform").count();
    assert!(storage <= 8, "{name}.wgsl: {storage} storage buffers, 8 are certain");
    for (_, constant) in module.constants.iter() {
        let (Some(id), Expression::Literal(value)) =
            (&constant.name, &module.global_expressions[constant.init])
        else {
            continue;
        };
        if let Literal::U32(value) = value {
            writeln!(out, "    /// `{id}`.\n    pub const {id}: u32 = {value};").unwrap();
        }
    }
    out.push_str("    /// Names of its overrides.\n    pub mod overrides {\n");
    let mut overrides = Vec::new();
    for (_, o) in module.overrides.iter() {
        // Those without a name are expressions of the others.
        let Some(id) = o.name.as_deref() else { continue };
        writeln!(out, "        /// `{id}`.\n        pub const {id}: &str = \"{id}\";").unwrap();
        overrides.push(id.to_owned());
    }
    out.push_str("    }\n");
    writeln!(out, "    /// The kernel.\n    pub static KERNEL: Kernel = Kernel {{").unwrap();
    writeln!(out, "        name: {name:?},\n        entry: {:?},", entry.name).unwrap();
    // Equal texts of several kernels are one in the program.
    let texts: Vec<_> = texts.iter().map(|text| without_comments(text)).collect();
    let texts: Vec<_> = texts.iter().filter(|text| !text.is_empty()).collect();
    writeln!(out, "        texts: &{texts:?},\n        overrides: &{overrides:?},").unwrap();
    out.push_str("        bindings: &[\n");
    for (number, access) in bindings {
        writeln!(out, "            Binding {{ number: {number}, access: Access::{access} }},")
            .unwrap();
    }
    out.push_str("        ],\n    };\n}\n");
}

/// `Params` as a Rust struct of the same fields, and its bytes.
fn describe_params(name: &str, module: &Module, inner: &TypeInner, out: &mut String) {
    let TypeInner::Struct { members, span } = inner else {
        panic!("{name}.wgsl: params is no struct");
    };
    out.push_str("    /// The uniform `params`.\n    #[derive(Clone, Copy, Debug)]\n");
    out.push_str("    pub struct Params {\n");
    let mut writes = String::new();
    for member in members {
        let field = member.name.as_deref().expect("a member has a name");
        let rust = match module.types[member.ty].inner {
            TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
            TypeInner::Scalar(Scalar { kind: ScalarKind::Float, width: 4 }) => "f32",
            ref other => panic!("{name}.wgsl: params.{field} is a {other:?}"),
        };
        writeln!(out, "        /// `{field}`.\n        pub {field}: {rust},").unwrap();
        let (start, end) = (member.offset, member.offset + 4);
        writeln!(
            writes,
            "            bytes[{start}..{end}].copy_from_slice(&self.{field}.to_le_bytes());"
        )
        .unwrap();
    }
    let bytes = span.next_multiple_of(16);
    writeln!(out, "    }}\n    impl Params {{\n        /// As the kernel reads them.").unwrap();
    writeln!(out, "        pub fn bytes(&self) -> [u8; {bytes}] {{").unwrap();
    writeln!(out, "            let mut bytes = [0; {bytes}];\n{writes}            bytes").unwrap();
    out.push_str("        }\n    }\n");
}

/// The text that a program carries, and a browser downloads: without comments, indents and
/// empty lines. WGSL has no strings in which `//` could stand for something else.
fn without_comments(source: &str) -> String {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).fold(String::new(), |text, line| text + line + "\n")
}
