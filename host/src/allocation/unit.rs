//! What the allocator chooses among: single modules, or whole layers.

use dynalora_plugin_api::{CostModel, Member, ModuleInfo};

use crate::recipe::Unit;

/// The modules of a run, grouped into the units an allocator chooses among.
///
/// Units stand in the order of their first module. The members of a unit are always switched
/// together, from the first step on, so that they share one history.
#[derive(Clone, Debug, PartialEq)]
pub struct Units {
    unit: Unit,
    modules: Vec<ModuleInfo>,
    infos: Vec<ModuleInfo>,
    members: Vec<Vec<usize>>,
    unit_of: Vec<usize>,
}

impl Units {
    /// Groups `modules`, which are in forward order.
    pub fn new(unit: Unit, modules: Vec<ModuleInfo>) -> Self {
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut unit_of = Vec::with_capacity(modules.len());
        let mut unit_of_layer = std::collections::HashMap::new();
        for (index, module) in modules.iter().enumerate() {
            let unit = match (unit, module.layer) {
                (Unit::Layer, Some(layer)) => *unit_of_layer.entry(layer).or_insert(members.len()),
                _ => members.len(),
            };
            if unit == members.len() {
                members.push(Vec::new());
            }
            members[unit].push(index);
            unit_of.push(unit);
        }
        let infos = members
            .iter()
            .map(|members| match (unit, modules[members[0]].layer) {
                (Unit::Layer, Some(layer)) => merge(layer, members, &modules),
                _ => modules[members[0]].clone(),
            })
            .collect();
        Units {
            unit,
            modules,
            infos,
            members,
            unit_of,
        }
    }

    /// The modules, as they were given.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// The grain they were grouped by.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether every unit is a single module.
    pub fn are_modules(&self) -> bool {
        self.infos == self.modules
    }

    /// One description per unit. A layer's path is its modules' common one (`encoder.layer.3`), its
    /// role is `layer`, its rank the largest of theirs; widths, parameters and FLOPs are sums.
    pub fn infos(&self) -> &[ModuleInfo] {
        &self.infos
    }

    /// The sum of each unit's module scores; at most the largest finite number.
    pub fn sum(&self, scores: &[f64]) -> Vec<f64> {
        let sum = |members: &Vec<usize>| {
            members
                .iter()
                .map(|&index| scores[index])
                .sum::<f64>()
                .min(f64::MAX)
        };
        self.members.iter().map(sum).collect()
    }

    /// Each unit's share of a per-module list: its first member's value, for what all members of a
    /// unit have in common.
    pub fn first<T: Copy>(&self, values: &[T]) -> Vec<T> {
        self.members
            .iter()
            .map(|members| values[members[0]])
            .collect()
    }

    /// Each unit's largest value of a per-module list of ranks.
    pub fn largest(&self, ranks: &[u32]) -> Vec<u32> {
        let largest =
            |members: &Vec<usize>| members.iter().map(|&index| ranks[index]).max().unwrap_or(0);
        self.members.iter().map(largest).collect()
    }

    /// What choices of units cost, by what choices of modules do.
    pub fn costs(&self, of_modules: &CostModel) -> CostModel {
        of_modules.grouped(&self.unit_of)
    }

    /// Components of units as those of modules: a layer's are its members', one after the other.
    pub fn split(&self, of_units: &[Vec<bool>]) -> Vec<Vec<bool>> {
        let mut of_modules = vec![Vec::new(); self.modules.len()];
        for (members, components) in self.members.iter().zip(of_units) {
            let mut rest = components.as_slice();
            for &module in members {
                let rank = (self.modules[module].rank as usize).min(rest.len());
                let (own, others) = rest.split_at(rank);
                of_modules[module] = own.to_vec();
                rest = others;
            }
        }
        of_modules
    }

    /// Whose pair each module uses, by which unit's each unit does: member by member. None where two such units
    /// have not as many members, or there is no such unit.
    pub fn pair_up(&self, shared: &[usize]) -> Option<Vec<usize>> {
        let mut owners = vec![0; self.modules.len()];
        for (members, owner) in self.members.iter().zip(shared) {
            let of_owner = self.members.get(*owner)?;
            if of_owner.len() != members.len() {
                return None;
            }
            for (module, owner) in members.iter().zip(of_owner) {
                owners[*module] = *owner;
            }
        }
        Some(owners)
    }

    /// A per-unit list as a per-module one: every module gets its unit's value.
    pub fn expand<T: Copy>(&self, values: &[T]) -> Vec<T> {
        self.unit_of.iter().map(|&unit| values[unit]).collect()
    }
}

/// The modules of one layer seen as one.
fn merge(layer: u32, members: &[usize], modules: &[ModuleInfo]) -> ModuleInfo {
    let sum =
        |field: fn(&ModuleInfo) -> u64| members.iter().map(|&index| field(&modules[index])).sum();
    let members = members.iter().map(|&index| &modules[index]);
    let mut info = ModuleInfo::default();
    info.path = common_path(members.clone().map(|module| module.path.as_str()));
    info.layer = Some(layer);
    info.role = "layer".to_owned();
    info.in_features = sum(|module| module.in_features);
    info.out_features = sum(|module| module.out_features);
    info.rank = members.clone().map(|module| module.rank).max().unwrap_or(0);
    info.parameters = sum(|module| module.parameters);
    info.forward_flops = sum(|module| module.forward_flops);
    info.backward_flops = sum(|module| module.backward_flops);
    info.members = members
        .map(|module| Member::new(module.path.as_str(), module.rank))
        .collect();
    info
}

/// The parts that all `paths` begin with, up to the last number among them: where only attention is
/// adapted, the layer is still `encoder.layer.3` and not `encoder.layer.3.attention.self`.
fn common_path<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let mut common: Vec<&str> = paths.next().unwrap_or_default().split('.').collect();
    for path in paths {
        let shared = common
            .iter()
            .zip(path.split('.'))
            .take_while(|(a, b)| *a == b)
            .count();
        common.truncate(shared);
    }
    let is_number = |part: &&str| part.parse::<u32>().is_ok();
    if let Some(number) = common.iter().rposition(is_number) {
        common.truncate(number + 1);
    }
    common.join(".")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A module of rank 8 between 4 and 4 features: 64 parameters.
    pub(crate) fn module(path: &str, layer: Option<u32>) -> ModuleInfo {
        let mut info = ModuleInfo::default();
        info.path = path.to_owned();
        info.layer = layer;
        info.role = path.rsplit('.').next().unwrap_or_default().to_owned();
        (info.in_features, info.out_features) = (4, 4);
        (info.rank, info.parameters) = (8, 64);
        (info.forward_flops, info.backward_flops) = (100, 200);
        info
    }

    /// Two layers of two modules and a pooler outside them.
    pub(crate) fn encoder() -> Vec<ModuleInfo> {
        vec![
            module("encoder.layer.0.attention.self.query", Some(0)),
            module("encoder.layer.0.output.dense", Some(0)),
            module("encoder.layer.1.attention.self.query", Some(1)),
            module("encoder.layer.1.attention.self.value", Some(1)),
            module("pooler.dense", None),
        ]
    }

    #[test]
    fn modules_stay_as_they_are() {
        let units = Units::new(Unit::Module, encoder());
        assert_eq!(units.infos(), encoder());
        assert_eq!(
            units.sum(&[1.0, 2.0, 3.0, 4.0, 5.0]),
            [1.0, 2.0, 3.0, 4.0, 5.0]
        );
        assert_eq!(units.expand(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn layers_add_up_and_a_module_outside_them_stands_alone() {
        let mut modules = encoder();
        modules[1].rank = 16;
        let units = Units::new(Unit::Layer, modules);
        let paths: Vec<&str> = units
            .infos()
            .iter()
            .map(|info| info.path.as_str())
            .collect();
        assert_eq!(
            paths,
            ["encoder.layer.0", "encoder.layer.1", "pooler.dense"]
        );
        let layer = &units.infos()[0];
        assert_eq!(
            (layer.role.as_str(), layer.layer, layer.rank),
            ("layer", Some(0), 16)
        );
        assert_eq!(
            (layer.parameters, layer.forward_flops, layer.backward_flops),
            (128, 200, 400)
        );
        assert_eq!((layer.in_features, layer.out_features), (8, 8));
        assert_eq!(units.infos()[2], encoder()[4]);
        assert_eq!(units.sum(&[1.0, 2.0, 3.0, 4.0, 5.0]), [3.0, 7.0, 5.0]);
        assert_eq!(
            units.expand(&[true, false, true]),
            [true, true, false, false, true]
        );
        assert_eq!(units.largest(&[8, 12, 0, 0, 3]), [12, 0, 3]);
    }

    #[test]
    fn modules_of_a_layer_need_not_stand_together() {
        let modules = vec![
            module("a.0.q", Some(0)),
            module("b", None),
            module("a.0.k", Some(0)),
            module("c", None),
        ];
        let units = Units::new(Unit::Layer, modules);
        assert_eq!(units.infos().len(), 3);
        assert_eq!(units.expand(&[1, 2, 3]), [1, 2, 1, 3]);
        assert_eq!(units.first(&[10, 20, 30, 40]), [10, 20, 40]);
    }

    #[test]
    fn a_layers_huge_scores_stay_finite() {
        let units = Units::new(Unit::Layer, encoder());
        assert_eq!(
            units.sum(&[f64::MAX, f64::MAX, 0.0, 0.0, 1.0]),
            [f64::MAX, 0.0, 1.0]
        );
    }

    #[test]
    fn the_path_of_a_layer_ends_with_its_number() {
        assert_eq!(common_path(["h.3.mlp.up"].into_iter()), "h.3");
        assert_eq!(
            common_path(["layers.0.blocks.1.q", "layers.0.blocks.1.k"].into_iter()),
            "layers.0.blocks.1"
        );
        assert_eq!(common_path(["shared.q", "shared.k"].into_iter()), "shared");
        assert_eq!(common_path(["x", "y"].into_iter()), "");
    }
}
