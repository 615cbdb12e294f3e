"""One night from opening to closing: its look before, its calls, its pages."""
