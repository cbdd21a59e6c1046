"""Tables, plots, the HTML report and the decision."""
