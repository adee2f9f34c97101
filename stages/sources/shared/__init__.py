"""What several sources share: folders that are classes, tables that list images, downloads."""
