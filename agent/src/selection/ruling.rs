//! What the rules say about a process, from what is known of it and of the processes above it.

use super::process::Facts;
use super::rules::{Extent, Fit, Select};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// Governed by the rule at this place in the list, as part of the tree below this member of the line: 0 is the process
    /// itself, then come its ancestors.
    Governs { rule: usize, root: usize },
    /// A rule leaves it alone.
    Exempts,
    /// Governed, because this rule would govern it if what is unknown fitted.
    Undetermined { rule: usize, unknown: &'static str },
    /// No rule is about it.
    Nothing,
}

/// The first rule that certainly fits decides, except that what is left alone must be known to be: a rule that may govern the
/// process and stands before one that leaves it alone is not passed over.
///
/// `line` is the process and its ancestors, as far as they are `whole`.
pub(super) fn rule_on(rules: &[Select], line: &[&Facts], whole: bool) -> Ruling {
    let mut undetermined = None;
    let [own, ..] = line else { return Ruling::Nothing };
    for (rule, select) in rules.iter().enumerate() {
        let of_tree = select.govern && select.extent() == Extent::Tree;
        // A tree begins with its topmost process that fits.
        let root = line.iter().rposition(|facts| of_tree && select.fit(facts) == Fit::Yes);
        if let Some(root) = root {
            return Ruling::Governs { rule, root };
        }
        match select.fit(own) {
            Fit::Yes if !select.govern => {
                return match undetermined {
                    Some(ruling) => ruling,
                    None => Ruling::Exempts,
                };
            }
            Fit::Yes => return Ruling::Governs { rule, root: 0 },
            Fit::Maybe(_) | Fit::No if !select.govern => {}
            own => {
                let above = line.iter().skip(1).filter(|_| of_tree).map(|facts| select.fit(facts));
                let unknown = std::iter::once(own).chain(above).find_map(|fit| match fit {
                    Fit::Maybe(unknown) => Some(unknown),
                    Fit::Yes | Fit::No => None,
                });
                let unknown = unknown.or((of_tree && !whole).then_some("parents"));
                if let Some(unknown) = unknown {
                    undetermined.get_or_insert(Ruling::Undetermined { rule, unknown });
                }
            }
        }
    }
    undetermined.unwrap_or(Ruling::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Select> {
        #[derive(serde::Deserialize)]
        struct Rules {
            select: Vec<Select>,
        }
        toml::from_str::<Rules>(text).unwrap().select
    }

    fn process(uid: u32, executable: &str) -> Facts {
        Facts {
            uid: Some(uid),
            cgroup: Some("/s/x".to_owned()),
            executable: (executable != "?").then(|| executable.to_owned()),
            ..Facts::default()
        }
    }

    const TWO: &str = "
        [[select]]
        name = 'claude'
        executables = ['/bin/claude']
        [[select]]
        name = 'people'
        users = [1000]
    ";

    #[test]
    fn the_first_rule_that_fits_decides_and_its_tree_begins_at_the_top() {
        let rules = rules(TWO);
        let [claude, bash, root] =
            [process(1000, "/bin/claude"), process(1000, "/bin/bash"), process(0, "/bin/x")];
        for (line, expected) in [
            (vec![&claude], Ruling::Governs { rule: 0, root: 0 }),
            (vec![&bash, &claude, &bash, &root], Ruling::Governs { rule: 0, root: 1 }),
            (vec![&claude, &bash, &claude, &bash], Ruling::Governs { rule: 0, root: 2 }),
            (vec![&bash, &bash, &root], Ruling::Governs { rule: 1, root: 1 }),
            // A helper of another user is still its parents' work.
            (vec![&root, &bash], Ruling::Governs { rule: 1, root: 1 }),
            (vec![&root, &root], Ruling::Nothing),
        ] {
            assert_eq!(rule_on(&rules, &line, true), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_governed_and_what_is_certain_goes_first() {
        let rules = rules(TWO);
        let [hidden, root] = [process(0, "?"), process(0, "/bin/x")];
        let undetermined = |rule, unknown| Ruling::Undetermined { rule, unknown };
        assert_eq!(rule_on(&rules, &[&hidden], true), undetermined(0, "executable"));
        assert_eq!(rule_on(&rules, &[&root, &hidden], true), undetermined(0, "executable"));
        assert_eq!(rule_on(&rules, &[&root], false), undetermined(0, "parents"));
        let person = process(1000, "?");
        assert_eq!(rule_on(&rules, &[&person], false), Ruling::Governs { rule: 1, root: 0 });
    }

    #[test]
    fn only_what_is_certainly_exempt_is_left_alone() {
        let rules = rules(
            "
            [[select]]
            name = 'claude'
            executables = ['/bin/claude']
            [[select]]
            name = 'exporter'
            govern = false
            users = [999]
            [[select]]
            name = 'all'
            cgroup = '/s'
            ",
        );
        assert_eq!(rule_on(&rules, &[&process(999, "/bin/exporter")], true), Ruling::Exempts);
        // It may be claude, and then it must not be.
        let hidden = rule_on(&rules, &[&process(999, "?")], true);
        assert_eq!(hidden, Ruling::Undetermined { rule: 0, unknown: "executable" });
        // It may be exempt, which is not enough.
        let nobody = Facts { uid: None, ..process(0, "/bin/x") };
        assert_eq!(rule_on(&rules, &[&nobody], true), Ruling::Governs { rule: 2, root: 0 });
        // Its child is not.
        let line = [&process(0, "/bin/x"), &process(999, "/bin/exporter")];
        assert_eq!(rule_on(&rules, &line, true), Ruling::Governs { rule: 2, root: 0 });
    }

    #[test]
    fn a_cgroup_holds_what_is_in_it_and_not_what_was_started_from_it() {
        let rules = rules("[[select]]\nname = 'ci'\ncgroup = '/s/x'");
        let outside = Facts { cgroup: Some("/s/y".to_owned()), ..process(0, "/bin/x") };
        assert_eq!(rule_on(&rules, &[&outside, &process(0, "/bin/x")], false), Ruling::Nothing);
        let lost = Facts { cgroup: None, ..outside };
        assert_eq!(rule_on(&rules, &[&lost], false), Ruling::Undetermined { rule: 0, unknown: "cgroup" });
    }
}
