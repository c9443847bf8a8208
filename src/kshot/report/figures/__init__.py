"""The pictures: Plotly figures, each with a text that says what it shows."""
