"""How good a run is and how sure that is: figures, their intervals, the record of a run, and what people look at."""
