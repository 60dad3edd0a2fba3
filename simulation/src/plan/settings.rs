//! `--set key=value`: what is said on the command line in place of what a plan says.

use super::PlanError;

/// Sets a key of a plan. Keys of tables are written with a dot, elements of lists by their number.
pub(super) fn set(table: &mut toml::Table, setting: &str) -> Result<(), PlanError> {
    let malformed = || PlanError::Setting(setting.to_owned());
    let (path, value) = setting.split_once('=').ok_or_else(malformed)?;
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
    let mut keys = path.trim().split('.').peekable();
    let first = keys.next().filter(|key| !key.is_empty()).ok_or_else(malformed)?;
    let empty = || toml::Value::Table(toml::Table::new());
    let mut place = table.entry(first).or_insert_with(empty);
    for key in keys {
        place = match place {
            toml::Value::Table(table) => table.entry(key).or_insert_with(empty),
            toml::Value::Array(list) => {
                let at: usize = key.parse().map_err(|_| malformed())?;
                list.get_mut(at).ok_or_else(malformed)?
            }
            toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_) => return Err(malformed()),
        };
    }
    *place = value;
    Ok(())
}
