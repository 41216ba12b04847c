#[derive(Debug)]
pub struct Create;
