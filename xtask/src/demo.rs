//! Placeholder.
pub struct Options;
impl Options {
    pub fn parse(_: &[String]) -> anyhow::Result<Self> {
        Ok(Self)
    }
}
pub fn run(_: &Options) -> anyhow::Result<()> {
    Ok(())
}
