"""A GPTQ model in the formats of other servers: the same integers and scales, written anew."""
