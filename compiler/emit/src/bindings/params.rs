//! A constant for each parameter, typed by its number of dims.

use dspc_program::Program;
use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};
use std::collections::BTreeSet;

/// The type of those constants.
pub(super) fn reference() -> TokenStream {
    quote! {
        /// A parameter of this program with `DIMS` dims; [`params`] has one for each.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct ParamRef<const DIMS: usize> {
            name: &'static str,
            dims: [usize; DIMS],
            index: usize,
        }

        impl<const DIMS: usize> ParamRef<DIMS> {
            /// Its name in the spec and in checkpoints.
            pub const fn name(&self) -> &'static str {
                self.name
            }

            /// Its sizes, outermost first.
            pub const fn dims(&self) -> [usize; DIMS] {
                self.dims
            }

            /// The product of its sizes.
            pub fn elements(&self) -> usize {
                self.dims.iter().product()
            }
        }
    }
}

/// The module of all of them.
pub(super) fn list(program: &Program) -> TokenStream {
    let names = constants(program.params.iter().map(|param| param.name.as_str()));
    let constants = program.params.iter().zip(names).enumerate().map(|(index, (param, constant))| {
        let (name, count) = (&param.name, Literal::usize_unsuffixed(param.dims.len()));
        let constant = format_ident!("{constant}");
        let sizes: Vec<String> = param.dims.iter().map(u64::to_string).collect();
        let doc = format!(" `{name}`, `[{}]`.", sizes.join(", "));
        let dims = param.dims.iter().map(|&size| Literal::u64_unsuffixed(size));
        let index = Literal::usize_unsuffixed(index);
        quote! {
            #[doc = #doc]
            pub const #constant: ParamRef<#count> =
                ParamRef { name: #name, dims: [#(#dims),*], index: #index };
        }
    });
    quote! {
        /// The model's parameters, in the order of checkpoints.
        pub mod params {
            use super::ParamRef;
            #(#constants)*
        }
    }
}

/// `H_0_ATTN_WEIGHT` for `h.0.attn.weight`; two that would be the same get a number.
fn constants<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut free = |name: String| {
        let numbered = (2u64..).map(|n| format!("{name}_{n}"));
        let mut choices = std::iter::once(name.clone()).chain(numbered);
        choices.find(|choice| taken.insert(choice.clone())).unwrap_or(name)
    };
    names.map(|name| free(constant(name))).collect()
}

fn constant(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let letters: String = name.chars().map(letter).collect();
    let named = letters.starts_with(|c: char| c.is_ascii_alphabetic());
    if named { letters } else { format!("P_{letters}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_a_constant_of_its_own() {
        let names = ["h.0.attn.weight", "h.0.attn_weight", "h.0.attn_weight.2", "wte", "_", "0", "größe", ""];
        let expected = [
            "H_0_ATTN_WEIGHT",
            "H_0_ATTN_WEIGHT_2",
            "H_0_ATTN_WEIGHT_2_2",
            "WTE",
            "P__",
            "P_0",
            "GR__E",
            "P_",
        ];
        assert_eq!(constants(names.into_iter()), expected);
    }
}
