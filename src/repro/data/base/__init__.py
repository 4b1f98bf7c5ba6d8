"""What every data set needs: batches, Lightning data modules, files, the catalogue."""
